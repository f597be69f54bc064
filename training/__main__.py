"""`torchrun --nproc-per-node 2 -m training RECIPE --data DATA --out RUN`: one process of several."""

import json
import logging
import os
import sys

from manifests.errors import CheckpointError, MGELDMError, ShardError, StoreError
from mgeldm.logs import log_to_stderr

OK, USAGE, INTERRUPTED = 0, 2, 130


def main() -> int:
    """Returns the exit status: 0 done or stopped by SIGTERM, 2 wrong usage or input, 130 Ctrl-C; as `mgeldm train`."""
    first = os.environ.get("RANK", "0") == "0"
    log_to_stderr(logging.INFO if first else logging.ERROR)
    try:
        from training.launch import launch  # slow to import: Ctrl-C may come then

        result = launch(sys.argv[1:], prog="python -m training")
    except (CheckpointError, ShardError, StoreError) as error:  # what one process alone may meet
        print(f"training: {error}", file=sys.stderr)
        return USAGE
    except MGELDMError as error:
        if first:
            print(f"training: {error}", file=sys.stderr)
        return USAGE
    except RuntimeError as error:
        from torch.distributed import DistError

        if not isinstance(error, DistError) and "gloo" not in str(error):
            raise
        print("training: another process has ended; what it met is in its line", file=sys.stderr)
        return USAGE
    except KeyboardInterrupt:
        if first:
            print("training: interrupted; the same command goes on from the last save", file=sys.stderr)
        return INTERRUPTED
    if first:
        print(json.dumps(result))
    return OK


if __name__ == "__main__":
    sys.exit(main())
