"""The two training stages. Reading order: `losses` -> `schedule` -> `settings` -> `loop`. Beside the loop are `launch`
(devices and processes), `checkpoint` and `cache` (files) and `board` (curves)."""
