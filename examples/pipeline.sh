#!/bin/sh
# Questions in by a pipe, one a line; answers out by a pipe, one a line, in the same order.
#
#     printf '%s\n' 'What is the capital of France?' 'What is the capital of Gabon?' | sh examples/pipeline.sh | sort
#
# Needs nothing that runs already: `mlxq run` starts a Redis and a worker for itself. What it says goes to standard
# error; a failed request fails the whole script. MLXQ_MODEL names another model than the small one in the package.
set -eu

folder=$(mktemp -d)
trap 'rm -rf "$folder"' EXIT

cat > "$folder/questions.txt" # a .txt file has one prompt a line
mlxq run -i "$folder/questions.txt" -o "$folder/answers.jsonl" --chat --ordered --set temperature=0 || {
    cat "$folder/answers.errors.jsonl" >&2 # why, in full
    exit 1
}
python3 -c '
import json, sys

for line in map(json.loads, sys.stdin):
    print(json.dumps(line["response"]["body"]["choices"][0]["message"]["content"], ensure_ascii=False))
' < "$folder/answers.jsonl"
