"""python -m newllm_core.batch: notebooks with parameters, one or many."""

from newllm_core.batch.notebooks import main

if __name__ == "__main__":
    raise SystemExit(main())
