"""Published data sets in their original layouts, by the names that commands know."""

from __future__ import annotations

# name on the command line -> class in deepmetric.data
BENCHMARKS = {
    "cub": "CUB200",
    "cars": "Cars196",
    "sop": "StanfordOnlineProducts",
    "inshop": "InShop",
    "inat18": "INaturalist2018",
}
