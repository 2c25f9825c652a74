#!/bin/bash
# Slurm: a run of one suite as two arrays and a job that joins them. Type: bash slurm.sh suites/biochem RUN
# Folder, checkout and environment are the same on each node. Add what your site asks for to OF_A_CASE.
set -euo pipefail
SUITE=$1
RUN=$2
OF_A_CASE=(--gres=gpu:1 --cpus-per-task=8 --mem=64G --time=12:00:00)
export RN_HARNESS_CACHE=${RN_HARNESS_CACHE:-$PWD/store} # shared: defense and controls are made once

mkdir -p "$RUN"
pytest "$SUITE" --collect-only -q | grep :: > "$RUN/cases.txt"
grep -v -e test_attack_ -e test_helpfulness_ "$RUN/cases.txt" > "$RUN/first.txt"  # what the others wait for
grep -e test_attack_ -e test_helpfulness_ "$RUN/cases.txt" > "$RUN/then.txt"

# A red case ends with 1 and is a result: what follows waits for the end of all, not for their success.
array() { # LIST [DEPENDENCY]
    sbatch --parsable "${OF_A_CASE[@]}" --array="1-$(wc -l < "$1")" "${@:2}" \
        --wrap "pytest \"\$(sed -n \${SLURM_ARRAY_TASK_ID}p '$1')\" --rn-run '$RUN'"
}
first=$(array "$RUN/first.txt")
then=$(array "$RUN/then.txt" --dependency="afterany:$first")
sbatch --parsable --dependency="afterany:$then" --wrap "pytest '$SUITE' --rn-run '$RUN' --rn-from-results --rn-gate"
