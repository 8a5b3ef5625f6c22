"""The two training stages. Reading order: `losses` -> `schedule` -> `loop`; `checkpoint` is their file format."""
