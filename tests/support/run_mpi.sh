#!/bin/sh
# Runs a test program under mpiexec and ends it for certain: run_mpi.sh SECONDS RANKS PROGRAM [ARGUMENT...]
# MPIEXEC names another mpiexec. The OMPI_ and PRTE_ variables let Open MPI run more ranks than cores, and as root.
set -u
seconds=$1
ranks=$2
shift 2
export OMPI_MCA_rmaps_base_oversubscribe=1 PRTE_MCA_rmaps_default_mapping_policy=:oversubscribe
export OMPI_ALLOW_RUN_AS_ROOT=1 OMPI_ALLOW_RUN_AS_ROOT_CONFIRM=1
exec timeout -k 5 "$seconds" "${MPIEXEC:-mpiexec}" -n "$ranks" "$@"
