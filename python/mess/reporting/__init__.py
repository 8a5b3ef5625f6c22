"""What people look at: `figures` (PNG files) and `tables` (the terminal)."""
