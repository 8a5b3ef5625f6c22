"""Segment pictures that are sent over HTTP: MESS_NET=net uvicorn --app-dir examples server:app

curl --data-binary @photo.jpg localhost:8000/segment --output labels.png
"""

import io
import os

import numpy as np
from fastapi import FastAPI, Request, Response
from PIL import Image

from mess import Runtime

app = FastAPI()
runtime = Runtime(os.environ["MESS_NET"])


@app.post("/segment")
async def segment(request: Request) -> Response:
    picture = Image.open(io.BytesIO(await request.body())).convert("RGB")
    result = runtime.predict(np.asarray(picture))
    file = io.BytesIO()
    Image.fromarray(result.labels.astype(np.uint8)).save(file, format="PNG")
    return Response(file.getvalue(), media_type="image/png", headers={"X-Exit": result.exit})
