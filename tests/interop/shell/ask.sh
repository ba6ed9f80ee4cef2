#!/usr/bin/env bash
# Asks the search agent with kcat and prints its reply: ask.sh BOOTSTRAP REQUEST [SECONDS]
#   ./ask.sh 127.0.0.1:19092 '{"text": "a striped red circle", "k": 3}'
# Ends with 1 when no reply comes in time. REQUESTS and REPLIES name other topics.
set -euo pipefail
broker=$1 request=$2 seconds=${3:-5}
id=$(date +%s%N)-$$-$RANDOM
now=$(date +%s%3N)

# One record a line; JSON has no line breaks within strings.
tr '\n' ' ' <<<"$request" | kcat -P -q -b "$broker" -t "${REQUESTS:-search.requests}" \
    -H "kafka_replyTopic=${REPLIES:-search.replies}" -H "kafka_correlationId=$id" -H "deadline=$((now + seconds * 1000))"

# All partitions, from a little before the request on: clocks differ, and the correlation id tells replies apart.
exec {replies}< <(exec kcat -C -q -u -b "$broker" -t "${REPLIES:-search.replies}" -o "s@$((now - 60000))" -f '%h\t%s\n')
reader=$!
trap 'kill $reader 2>/dev/null; wait $reader 2>/dev/null || true' EXIT
end=$((SECONDS + seconds + 1))
while ((SECONDS < end)); do
    if IFS=$'\t' read -r -t 1 -u "$replies" headers value && [[ ",$headers," == *",kafka_correlationId=$id,"* ]]; then
        printf '%s\n' "$value"
        exit 0
    fi
done
echo "ask.sh: no reply within $seconds s" >&2
exit 1
