#!/bin/sh
# Measures the bundled weights on a world they have not seen, for the model card: 24 forecasts of 14 days through 2024.
#
#   wm2 fetch --init 2024-01-01T00/2025-02-01T00/6h --source simulation --option seed=5 --option begins=2022-12-01 \
#       --out world5
#   wm2 preprocess world5 --out test.zarr --schema mini --without slt --train 2023-12 --test 2024-01-01/2025-01-31
#   weights/measure.sh world5 test.zarr climatology.zarr forecasts [WEIGHTS]
#
# climatology.zarr is that of the training store (`wm2 preprocess --store store.zarr --climatology climatology.zarr`).
set -eu
world=$1 truth=$2 climatology=$3 out=$4 weights=${5:-wm2-mini}
mkdir -p "$out"
for month in 01 02 03 04 05 06 07 08 09 10 11 12; do
  for day in 08 23; do
    wm2 forecast --init "2024-$month-${day}T00" --days 14 --source file --input "$world"/*2024-$month.nc \
      --weights "$weights" --out "$out/2024-$month-$day.nc" --overwrite 2>/dev/null
  done
done
wm2 evaluate "$out"/*.nc --truth "$truth" --climatology "$climatology" --leads 6,24,72,120,192,240,288,336 \
  --out "$out/scores.json" --out "$out/scores.csv"
