#!/usr/bin/env bash
# with_mpirun.sh MPIRUN SCRIPT ARGS...: runs SCRIPT MPIRUN ARGS..., or says why not (77: skipped).
if [[ -z $1 || ! -x $1 || $# -lt 3 ]]; then
  echo "skipped: this build has no MPI, or there is no mpirun ('$1')"
  exit 77
fi
exec bash "$2" "$1" "${@:3}"
