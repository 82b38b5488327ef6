"""Runs a command and prints its peak resident memory and time: peak.py COMMAND [ARGUMENT...]."""

import os, resource, subprocess, sys, time

start = time.time()
code = subprocess.run(sys.argv[1:], stdout=subprocess.DEVNULL).returncode
peak = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss * (
    1 if sys.platform == "darwin" else 1024
)
words = [os.path.basename(w) if os.path.isabs(w) else w for w in sys.argv[1:]]
print(f"{peak / 1e9:6.2f} GB {time.time() - start:8.1f} s  {' '.join(words)}")
sys.exit(code)
