"""Segment pictures that are sent over HTTP: MESS_NET=net uvicorn --app-dir examples server:app

curl --data-binary @photo.jpg localhost:8000/segment --output labels.png
"""

import io
import os

import numpy as np
from fastapi import FastAPI, HTTPException, Request, Response
from fastapi.concurrency import run_in_threadpool
from PIL import Image, ImageOps

from mess import Runtime

app = FastAPI()
runtime = Runtime(os.environ["MESS_NET"])


def answer(sent: bytes) -> Response:
    try:
        picture = ImageOps.exif_transpose(Image.open(io.BytesIO(sent))).convert("RGB")
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:  # as decoders do
        raise HTTPException(422, "expected a picture") from error
    result = runtime.predict(np.asarray(picture))
    file = io.BytesIO()
    Image.fromarray(result.labels.astype(np.uint8)).save(file, format="PNG")
    return Response(file.getvalue(), media_type="image/png", headers={"X-Exit": result.exit})


@app.post("/segment")
async def segment(request: Request) -> Response:
    return await run_in_threadpool(answer, await request.body())
