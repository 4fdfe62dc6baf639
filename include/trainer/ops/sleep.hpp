// Time that passes as if a slower machine had computed.
#pragma once

namespace trainer::ops {

/// Returns so many milliseconds after the call, within a few microseconds where a core is free, asleep nearly all of
/// them: many ranks can so run on few cores as if each had its own. A sleep that follows another at once makes up for
/// what that was late.
void sleep_precisely(double milliseconds);

}  // namespace trainer::ops
