"""recemb's preparation of a Criteo file with its defaults; prints its own seconds as JSON.

python recemb_prepare.py FILE OUT MIN_COUNT
"""

import json
import sys
import time
from pathlib import Path

from recemb.data.criteo import Criteo

raw, out, min_count = sys.argv[1:]
started = time.perf_counter()
prepared = Criteo(min_count=int(min_count)).prepare(Path(raw), Path(out))
seconds = time.perf_counter() - started
num_ids = sum(c.num_embeddings for c in prepared.schema.categorical)
print("RESULT " + json.dumps({"seconds": seconds, "num_ids": num_ids}))
