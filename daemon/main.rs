//! The `mictlan` program; called as `mount.mictlan` it mounts.

fn main() -> std::process::ExitCode {
    mictlan_daemon::cli::run()
}
