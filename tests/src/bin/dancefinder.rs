//! The service, as a process that a test can start and kill.

use std::process::ExitCode;

fn main() -> ExitCode {
    dancefinder_projections::service().main()
}
