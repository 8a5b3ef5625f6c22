"""Coverage-guided fuzzing of every file reader and of the core's arguments, with atheris: `make fuzz`."""
