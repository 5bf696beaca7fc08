//! The `silicide` command line.

fn main() -> std::process::ExitCode {
    silicide_cli::main()
}
