#!/usr/bin/env bash
# A release check: convert, prove in the runtime, leave what CI shows.
#
#     examples/release/release.sh MODEL OUT REPORTS [options of the conversion]
#
# MODEL is a model folder, OUT the file or folder to write, REPORTS a folder for manifest.json,
# check.json, check.xml (JUnit) and check.html. Exit code: 0 PASS, 1 FAIL, 4 INCONCLUSIVE, 2 refused.
set -euo pipefail
if (($# < 3)); then
	sed -n '2,7s/^# \{0,1\}//p' "$0" >&2
	exit 2
fi
model=$1 out=$2 reports=$3
here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
mkdir -p "$reports"

qconvert "$model" --to gguf --bits 4 --out "$out" --manifest "$reports/manifest.json" --force "${@:4}"
qconvert check "$out" --against "$model" --gate "${GATES:-$here/gates.toml}" \
	--manifest "$reports/manifest.json" --json "$reports/check.json" \
	--junit "$reports/check.xml" --html "$reports/check.html"
