fn main() -> std::process::ExitCode {
    outgate::cli::main()
}
