#!/usr/bin/env python3
"""Bad input and failures of every kind: what the trainer says, and how it ends.  bad_input.py TRAINER [--ranks 1,2,4]"""
import argparse
import os
import shutil
import sys
import tempfile
import time
from pathlib import Path

import configurations
import data_files
import directories
import failures
import launch


GROUPS = {"configurations": configurations, "data": data_files, "directories": directories, "failures": failures}
QUICK = "configurations,data"


def cases(names):
    return [case for name in names.split(",") for case in GROUPS[name].cases()]


def main():
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("trainer", type=Path)
    parser.add_argument("--ranks", default="1,2", help="numbers of ranks, e.g. 1,2,4")
    parser.add_argument("--groups", default=",".join(GROUPS), help="of cases, e.g. data,failures")
    parser.add_argument("--quick", action="store_const", dest="groups", const=QUICK, help=f"the same as --groups {QUICK}")
    parser.add_argument("--only", default="", metavar="WORD", help="the cases that have the word in their name")
    arguments = parser.parse_args()
    if not launch.find_mpiexec():
        print("no mpiexec: skipped")
        return 77
    wrong, done, skipped = 0, 0, 0
    began = time.monotonic()
    for ranks in map(int, arguments.ranks.split(",")):
        for name, case in cases(arguments.groups):
            if arguments.only not in name:
                continue
            folder = Path(tempfile.mkdtemp(prefix="trainer-bad-input-"))
            try:
                outcome = case(launch.Place(arguments.trainer.resolve(), ranks, folder))
                skipped += outcome is not None
                if outcome is not None:
                    print(f"skipped: {name}: {outcome}")
            except launch.Failed as failure:
                wrong += 1
                print(f"FAILED: {name}, {ranks} ranks: {failure}", flush=True)
            finally:
                os.chmod(folder, 0o700)
                shutil.rmtree(folder, ignore_errors=True)
            done += 1
    print(f"{done} cases, {wrong} failed, {skipped} skipped, {time.monotonic() - began:.1f} s")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
