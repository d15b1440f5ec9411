//! `dancefinder-projections`: see `dancefinder-projections help`.

use std::process::ExitCode;

fn main() -> ExitCode {
    dancefinder_projections::service().main()
}
