//! What somebody types: the code of an invite.
//!
//! Owns: that a secret need not be an argument, which every user of the machine can see.

use super::error::CliError;
use std::io::{BufRead, IsTerminal, Read};
use zeroize::Zeroizing;

/// A code is shorter by far; whatever else is on standard input is not read to its end.
const CODE_BYTES_MAX: u64 = 4 << 10;

/// The code as it was typed, asked for, or read: whoever sees it before it is used is the newcomer.
pub fn code(typed: Option<&str>) -> Result<Zeroizing<String>, CliError> {
    if let Some(typed) = typed.filter(|typed| *typed != "-") {
        return Ok(Zeroizing::new(typed.to_owned()));
    }
    let input = std::io::stdin();
    let said = match input.is_terminal() {
        true => rpassword::prompt_password("code of the invite (it is not shown): "),
        false => {
            let mut line = String::new();
            input.lock().take(CODE_BYTES_MAX).read_line(&mut line).map(|_| line)
        }
    };
    let unread = |why: &dyn std::fmt::Display| {
        CliError::Usage(format!(
            "no code of an invite could be read: {why}; nothing was changed; its owner prints one: \
             mictlan invite"
        ))
    };
    let said = Zeroizing::new(said.map_err(|error| unread(&error))?);
    match said.trim() {
        "" => Err(unread(&"the line is empty")),
        code => Ok(Zeroizing::new(code.to_owned())),
    }
}
