#!/bin/sh
# Sends one message with curl and follows it to its outcome.
#
#   examples/send.sh +4915200000000 "Hello"
#
# GATEWAY, CA, CERT and KEY say where to and as whom; the defaults are those of `./broker up`.
set -eu

[ $# -eq 2 ] || { echo "usage: $0 NUMBER TEXT" >&2; exit 2; }
gateway=${GATEWAY:-https://localhost:8001}
ca=${CA:-certs/ca.crt}
cert=${CERT:-certs/clients/demo/client.crt}
key=${KEY:-certs/clients/demo/client.key}

# The body as JSON; curl has no means for it.
quoted() { printf '%s' "$1" | sed -e 's/\\/\\\\/g' -e 's/"/\\"/g' | awk 'NR > 1 { printf "\\n" } { printf "%s", $0 }'; }
value() { sed -n "s/.*\"$1\":\"\([^\"]*\)\".*/\1/p"; }
call() { curl --silent --show-error --cacert "$ca" --cert "$cert" --key "$key" "$@"; }

# One key for one message, however often it is sent. No answer, 429 and 503 mean: again, with the same key; curl
# waits as long as Retry-After says.
idempotency_key=$(od -An -N16 -tx1 /dev/urandom | tr -d ' \n')
answer=$(call --retry 10 --retry-all-errors --retry-connrefused --retry-delay 1 --max-time 30 \
    --write-out '\n%{http_code}' \
    --header 'Content-Type: application/json' \
    --header "Idempotency-Key: $idempotency_key" \
    --data "{\"sender_number\": \"$(quoted "$1")\", \"message_body\": \"$(quoted "$2")\"}" \
    "$gateway/api/v1/messages" | tail -n 2)
body=$(printf '%s\n' "$answer" | head -n 1)
code=$(printf '%s\n' "$answer" | tail -n 1)
if [ "$code" != 202 ]; then
    echo "refused: $code $body" >&2
    exit 1
fi

id=$(printf '%s' "$body" | value message_id)
echo "queued $id"
while :; do
    status=$(call --retry 10 --retry-all-errors --retry-connrefused "$gateway/api/v1/messages/$id" | value status)
    case $status in
        delivered) echo "delivered $id"; exit 0 ;;
        failed) echo "failed $id"; exit 1 ;;
    esac
    sleep 1
done
