//! The binary `contract`.

fn main() -> std::process::ExitCode {
    strongroom_cli::command::main()
}
