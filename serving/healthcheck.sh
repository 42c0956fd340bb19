#!/bin/bash
# Healthy while a version of the model is available: healthcheck [PORT [MODEL]].
# Bash alone, because the image of TensorFlow Serving has neither curl nor wget.
set -eu
port=${1:-8501}
model=${2:-magnetic-tiles}

exec 3<>"/dev/tcp/127.0.0.1/$port"
printf 'GET /v1/models/%s HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\n\r\n' "$model" >&3
answer=
IFS= read -r -d '' -t 4 -u 3 answer || true # until the server closes; there is no NUL
[[ $answer == *'"AVAILABLE"'* ]] && exit
echo "no version of $model is available at port $port: ${answer:-no answer}"
exit 1
