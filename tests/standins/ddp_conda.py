"""`conda run` in its shape: Python, that runs a bash script which it has written, that runs the command.

Usage: ddp_conda.py run -n NAME COMMAND...
"""

import os
import shlex
import subprocess
import sys
import tempfile

with tempfile.NamedTemporaryFile("w", suffix=".sh", delete=False) as script:
    script.write(f". /dev/null\n{shlex.join(sys.argv[4:])}\n")
status = subprocess.run(["bash", script.name], check=False).returncode
os.unlink(script.name)
sys.exit(status)
