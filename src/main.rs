//! The `registrar` binary: everything is in the library, so that tests run what users run.

fn main() -> std::process::ExitCode {
    registrar::cli::main()
}
