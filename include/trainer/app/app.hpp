// The program: from the command line to an exit code.
#pragma once

namespace trainer::app {

/// Parses the command line, runs the subcommand, prints what went wrong, and returns the process's exit code.
int run(int argc, char** argv);

}  // namespace trainer::app
