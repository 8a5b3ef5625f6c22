"""What people look at: `charts` and `figures` (PNG files) and `tables` (the terminal)."""
