"""`python -m model_export`: the offline step's commands."""

from model_export.cli import main

if __name__ == "__main__":  # a worker process that is spawned imports this module too
    main(prog_name="python -m model_export")
