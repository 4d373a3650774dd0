//! `mictlan completions` and the manual page, both made from the verbs themselves, and the list of a
//! mount's options.

use super::error::CliError;
use clap::{Arg, CommandFactory};
use clap_complete::Shell;
use mictlan_mount::options::{dropped, listed};
use std::io::Write;
use std::process::ExitCode;

/// In the order of their numbers. `error` and `status` choose them.
const EXIT_CODES: [(u8, &str); 18] = [
    (0, "It is done; of a change: committed."),
    (1, "It failed; the text says what happened to the data. Of verify: something is wrong."),
    (2, "It was typed wrongly; nothing was done."),
    (3, "No such network is configured here, or its configuration is missing."),
    (4, "The key is missing, only a peer's, unreadable or protected by another passphrase."),
    (5, "No peer answered, or a peer refused."),
    (6, "The directory cannot be mounted on, or the kernel refused the mount."),
    (
        7,
        "The volume cannot be opened: it does not exist, this key has no access, or this host has no \
         room for a journal.",
    ),
    (8, "The peer on this machine cannot start, or had to stop."),
    (9, "The invite is wrong, expired or used."),
    (10, "The volume refused an operation on a path."),
    (11, "Something could not be committed and waits in this host's journal."),
    (12, "Of status: it works in part, and something needs attention."),
    (13, "Of verify --replay: a snapshot root is not what the commits make; it says whose."),
    (14, "Of verify --replay: a chunk is missing, so nothing is said of the roots; it says which."),
    (101, "The program has an error; nothing acknowledged is lost."),
    (130, "It was interrupted; whole files only were kept."),
    (141, "Whoever reads what it prints ended before the last byte; what it did is done."),
];

pub fn completions(shell: Shell) -> Result<ExitCode, CliError> {
    let mut command = super::Cli::command();
    let mut script = Vec::new();
    clap_complete::generate(shell, &mut command, "mictlan", &mut script);
    print!("{}", String::from_utf8_lossy(&script));
    Ok(ExitCode::SUCCESS)
}

/// One page with every verb, so that `man mictlan` can be searched for any of them.
pub fn man() -> Result<ExitCode, CliError> {
    let page = page().map_err(CliError::Runtime)?;
    print!("{}", String::from_utf8_lossy(&page));
    Ok(ExitCode::SUCCESS)
}

fn page() -> std::io::Result<Vec<u8>> {
    let mut command = super::Cli::command().disable_help_subcommand(true);
    command.build();
    let mut page = Vec::new();
    // The date is left out: the page changes when the program does.
    let whole = clap_mangen::Man::new(command.clone()).date("");
    whole.render_title(&mut page)?;
    whole.render_name_section(&mut page)?;
    whole.render_synopsis_section(&mut page)?;
    whole.render_description_section(&mut page)?;
    writeln!(page, ".SH VERBS")?;
    verbs(&command, "mictlan", &mut page)?;
    writeln!(page, ".SH MOUNT OPTIONS")?;
    for (option, does) in listed() {
        writeln!(page, ".TP\n.B {}\n{}", escaped(&option), escaped(does))?;
    }
    writeln!(page, ".PP\n{}", escaped(&others()))?;
    writeln!(page, ".SH EXIT STATUS")?;
    for (code, means) in EXIT_CODES {
        writeln!(page, ".TP\n.B {code}\n{means}")?;
    }
    Ok(page)
}

fn verbs(command: &clap::Command, name: &str, page: &mut Vec<u8>) -> std::io::Result<()> {
    for verb in command.get_subcommands().filter(|verb| !verb.is_hide_set()) {
        let name = format!("{name} {}", verb.get_name());
        if verb.has_subcommands() {
            verbs(verb, &name, page)?;
            continue;
        }
        writeln!(page, ".SS {name}")?;
        let about = verb.get_about().map(|about| about.to_string()).unwrap_or_default();
        writeln!(page, "{}", escaped(&about))?;
        for argument in verb.get_arguments().filter(|argument| !argument.is_hide_set()) {
            let help = argument.get_help().map(|help| help.to_string()).unwrap_or_default();
            let shown = escaped(&shown(argument));
            writeln!(page, ".TP\n\\fB{shown}\\fR\n{}", escaped(&help))?;
        }
    }
    Ok(())
}

/// With its short form, where it has two.
fn shown(argument: &Arg) -> String {
    match (argument.get_short(), argument.get_long()) {
        (Some(short), Some(_)) => format!("-{short}, {argument}"),
        _ => argument.to_string(),
    }
}

/// What `-o` takes, a line each, for whoever asks for help.
pub fn mount_options() -> String {
    let lines = listed().map(|(option, does)| format!("  {option:<26}{does}\n"));
    format!("Options of -o, separated by commas:\n{}\n{}", lines.collect::<String>(), others())
}

fn others() -> String {
    format!(
        "remount changes ro, rw, nodev, nosuid, noexec, noatime and their opposites while DIR is \
         mounted. Taken, and without a meaning here: {}, and what begins with x-.",
        dropped()
    )
}

/// roff takes a leading dot or quote for a request, and a backslash for more.
fn escaped(text: &str) -> String {
    let text = text.replace('\\', "\\\\").replace('-', "\\-");
    if text.starts_with(['.', '\'']) { format!("\\&{text}") } else { text }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// The leaves of the tree of verbs, each with its whole name.
    fn leaves(command: &clap::Command, name: &str, found: &mut Vec<(String, clap::Command)>) {
        for verb in command.get_subcommands().filter(|verb| !verb.is_hide_set()) {
            let name = format!("{name} {}", verb.get_name());
            match verb.has_subcommands() {
                true => leaves(verb, &name, found),
                false => found.push((name, verb.clone())),
            }
        }
    }

    #[test]
    fn every_verb_has_json() {
        let mut found = Vec::new();
        leaves(&super::super::Cli::command(), "mictlan", &mut found);
        assert!(found.len() > 20, "{} verbs", found.len());
        // What that one prints is for a shell.
        for (name, verb) in found.iter().filter(|(name, _)| name != "mictlan completions") {
            assert!(verb.get_arguments().any(|one| one.get_long() == Some("json")), "{name}");
        }
    }

    #[test]
    fn every_option_of_a_mount_is_in_the_page_and_in_the_help() {
        let mut command = super::super::Cli::command();
        command.build();
        let mount = command.find_subcommand_mut("mount").expect("a verb");
        let helps = [mount.render_help().to_string(), mount.render_long_help().to_string()];
        let page = String::from_utf8(page().expect("memory takes it")).expect("UTF-8");
        for (option, does) in listed() {
            for help in helps.iter().chain([&super::super::mount::helper_usage()]) {
                let line = help.lines().find(|line| line.trim().starts_with(&format!("{option} ")));
                assert!(line.is_some_and(|line| line.ends_with(does)), "{option}: {help}");
            }
            assert!(page.contains(&format!(".B {}\n", escaped(&option))), "{option}");
        }
        for both in ["\\fB\\-f, \\-\\-foreground\\fR", "\\fB\\-l, \\-\\-lazy\\fR"] {
            assert!(page.contains(both), "{both}");
        }
    }
}
