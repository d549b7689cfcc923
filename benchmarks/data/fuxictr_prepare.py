"""FuxiCTR's preprocessing of generated Criteo rows; prints its own seconds as JSON.

    python fuxictr_prepare.py FOLDER_OF_CSV OUT MIN_COUNT

Numeric columns are only read and filled, which is the least that FuxiCTR can do with them.
"""

import json
import sys
import time

from fuxictr.preprocess import FeatureProcessor, build_dataset
from fuxictr.preprocess.build_dataset import init_ray

folder, out, min_count = sys.argv[1:]
# Starting ray's processes is not preprocessing, so the inner clock begins after it.
init_ray()
started = time.perf_counter()
processor = FeatureProcessor(
    feature_cols=[
        {
            "name": [f"I{j}" for j in range(1, 14)],
            "active": True,
            "dtype": "float",
            "type": "numeric",
            "fill_na": 0,
        },
        {
            "name": [f"C{j}" for j in range(1, 27)],
            "active": True,
            "dtype": "str",
            "type": "categorical",
            "fill_na": "",
        },
    ],
    label_col={"name": "label", "dtype": "float"},
    dataset_id="criteo",
    data_root=out,
)
build_dataset(
    processor,
    train_data=f"{folder}/train.csv",
    valid_data=f"{folder}/valid.csv",
    test_data=f"{folder}/test.csv",
    data_format="csv",
    min_categr_count=int(min_count),
)
seconds = time.perf_counter() - started
num_ids = sum(f.get("vocab_size", 0) for f in processor.feature_map.features.values())
print("RESULT " + json.dumps({"seconds": seconds, "num_ids": num_ids}))
