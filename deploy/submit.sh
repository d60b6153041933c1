#!/usr/bin/env bash
# Train as a job of a Ray cluster where nothing of ours is installed but the dependencies:
#   deploy/submit.sh configs/quickstart.yaml run_dir=/shared/runs/quickstart
# RAY_API_SERVER_ADDRESS  the head's dashboard; default http://127.0.0.1:8265
# RAY_AUTH_TOKEN, RAY_AUTH_TOKEN_PATH or ~/.ray/auth_token  the cluster's token
# WORKING_DIR  what is sent; default this checkout; or the address of a zip that every node can read
set -euo pipefail
cd "$(dirname "$0")/.."
export RAY_AUTH_MODE="${RAY_AUTH_MODE:-token}"
export RAY_API_SERVER_ADDRESS="${RAY_API_SERVER_ADDRESS:-http://127.0.0.1:8265}"
# Ray kills a stopped job after 3 s, too soon for its last snapshot; hence 60.
exec ray job submit --address "$RAY_API_SERVER_ADDRESS" --working-dir "${WORKING_DIR:-.}" \
    --runtime-env-json '{"env_vars": {"RAY_JOB_STOP_WAIT_TIME_S": "60"}}' \
    -- python -m orchestrator train "$@"
