#!/usr/bin/env bash
# The whole way on the embedded data set, in the commands that a user types: train, evaluate on unseen classes,
# build an index, search it. Everything lands in runs/quickstart, which is made anew each time.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
here=runs/quickstart

say() { printf '\n\033[1m$ %s\033[0m\n' "$*"; "$@"; }

rm -rf "$here"
mkdir -p "$here"

printf 'Drawn characters: the model trains on some, and is measured on characters that it never saw.\n'
say deepmetric data check glyphs
say deepmetric train data/glyphs systems/multi_similarity --run "$here/run"
printf '\nOn the test classes, before training and after:\n'
say deepmetric evaluate "$here/run" --untrained --bootstrap 1000

printf '\nA search over a folder of images, as with your own: ROOT/CLASS/IMAGE.\n'
say deepmetric data export glyphs "$here/images" --split test
# one image leaves the folder and becomes the query
query=$(find "$here/images" -name '*.png' | sort | sed -n 100p)
class=$(basename "$(dirname "$query")")
mv "$query" "$here/query.png"
say deepmetric index "$here/run" "$here/images" -o "$here/index"
say deepmetric search "$here/index" "$here/query.png" -k 10
printf '\nThe query was of class %s.\n' "$class"

printf '\nEverything lies in %s:\n' "$PWD/$here"
printf '  run/     recipe, metrics (also for TensorBoard), checkpoints, model\n'
printf '  images/  the test items as a folder\n  index/   the search index\n  query.png\n'
printf '\nOn your own images: deepmetric train data/folder systems/multi_similarity --data.root FOLDER\n'
