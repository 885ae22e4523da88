"""A T5X-compatible trainer for encoder-decoder models on released packages."""

import sys

# While `python -m t5x.train` imports its parent package, argv[0] is "-m". TensorFlow and XLA print
# start-up notes from C++ as they are imported, so the log has to be opened before they are.
if sys.argv[:1] == ["-m"]:
    from t5x.run import interruption

    interruption.listen()
    if "--verbose" not in sys.argv:
        from t5x.run.console import console

        console.capture()
