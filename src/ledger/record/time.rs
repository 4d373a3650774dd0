//! Times of the ledger as text: `2026-11-21T19:27:14.123Z`, exactly these 24 bytes.
//!
//! Owns: the one written form of a time, from 1970 to 9999.
//! Invariant: `parse(format(t)) == t`, and no two texts mean the same time.

use crate::id::TimeMs;

/// The last millisecond that has a written form.
pub const LAST: TimeMs = TimeMs(253_402_300_799_999);

const DAY_MS: u64 = 86_400_000;

/// The 24 bytes of a time; after year 9999 there is no form, which is a caller's mistake.
pub fn format(t: TimeMs) -> String {
    assert!(t <= LAST, "a time after the year 9999");
    let (year, month, day) = date(t.0 / DAY_MS);
    let ms = t.0 % DAY_MS;
    let (h, m, s) = (ms / 3_600_000, ms / 60_000 % 60, ms / 1_000 % 60);
    format!("{year:04}-{month:02}-{day:02}T{h:02}:{m:02}:{s:02}.{:03}Z", ms % 1_000)
}

/// The time that exactly these 24 bytes write; no leap second, no other zone, nothing before 1970.
pub fn parse(text: &[u8]) -> Option<TimeMs> {
    let text: &[u8; 24] = text.try_into().ok()?;
    for (at, mark) in
        [(4, b'-'), (7, b'-'), (10, b'T'), (13, b':'), (16, b':'), (19, b'.'), (23, b'Z')]
    {
        if text[at] != mark {
            return None;
        }
    }
    let year = digits(&text[0..4])?;
    let (month, day) = (digits(&text[5..7])?, digits(&text[8..10])?);
    let (h, m, s) = (digits(&text[11..13])?, digits(&text[14..16])?, digits(&text[17..19])?);
    let ms = digits(&text[20..23])?;
    let in_range = year >= 1970
        && (1..=12).contains(&month)
        && (1..=month_days(year, month)).contains(&day)
        && h < 24
        && m < 60
        && s < 60;
    in_range.then(|| {
        TimeMs(days(year, month, day) * DAY_MS + h * 3_600_000 + m * 60_000 + s * 1_000 + ms)
    })
}

fn digits(text: &[u8]) -> Option<u64> {
    text.iter().try_fold(0, |n, b| b.is_ascii_digit().then(|| n * 10 + u64::from(b - b'0')))
}

fn is_leap(year: u64) -> bool {
    year.is_multiple_of(4) && (!year.is_multiple_of(100) || year.is_multiple_of(400))
}

fn month_days(year: u64, month: u64) -> u64 {
    match month {
        2 if is_leap(year) => 29,
        2 => 28,
        4 | 6 | 9 | 11 => 30,
        _ => 31,
    }
}

/// Days before 1 January of `year`, counted from the year 0 of the proleptic calendar.
fn days_before(year: u64) -> u64 {
    let past = year - 1;
    365 * year + past / 4 - past / 100 + past / 400
}

/// Days since 1970-01-01 of a date that exists.
fn days(year: u64, month: u64, day: u64) -> u64 {
    const BEFORE_MONTH: [u64; 12] = [0, 31, 59, 90, 120, 151, 181, 212, 243, 273, 304, 334];
    let leap_day = u64::from(month > 2 && is_leap(year));
    days_before(year) - days_before(1970) + BEFORE_MONTH[month as usize - 1] + leap_day + day - 1
}

fn date(day_number: u64) -> (u64, u64, u64) {
    // The mean year gives the year, or one more or less at its ends.
    let mut year = 1970 + day_number * 400 / 146_097;
    while days(year, 1, 1) > day_number {
        year -= 1;
    }
    while days(year + 1, 1, 1) <= day_number {
        year += 1;
    }
    let mut left = day_number - days(year, 1, 1);
    let mut month = 1;
    while left >= month_days(year, month) {
        left -= month_days(year, month);
        month += 1;
    }
    (year, month, left + 1)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn known_times_have_their_known_form() {
        for (ms, text) in [
            (0, "1970-01-01T00:00:00.000Z"),
            (951_826_154_123, "2000-02-29T12:09:14.123Z"),
            (1_795_289_234_123, "2026-11-21T19:27:14.123Z"),
            (4_107_542_399_999, "2100-02-28T23:59:59.999Z"),
            (4_107_542_400_000, "2100-03-01T00:00:00.000Z"),
            (LAST.0, "9999-12-31T23:59:59.999Z"),
        ] {
            assert_eq!(format(TimeMs(ms)), text);
            assert_eq!(parse(text.as_bytes()), Some(TimeMs(ms)), "{text}");
        }
    }

    #[test]
    fn every_year_begins_and_ends_where_it_should() {
        for year in 1970..=9999 {
            let first = days(year, 1, 1);
            assert_eq!(date(first), (year, 1, 1));
            assert_eq!(first.checked_sub(1).map(date), (year > 1970).then_some((year - 1, 12, 31)));
        }
    }

    #[test]
    fn every_other_form_is_refused() {
        for bad in [
            "2026-11-21T19:27:14Z",
            "2026-11-21T19:27:14.1234Z",
            "2026-11-21t19:27:14.123Z",
            "2026-11-21T19:27:14.123+",
            "2026-02-29T00:00:00.000Z",
            "2026-13-01T00:00:00.000Z",
            "2026-00-01T00:00:00.000Z",
            "2026-01-00T00:00:00.000Z",
            "2026-01-01T24:00:00.000Z",
            "2026-01-01T23:59:60.000Z",
            "1969-12-31T23:59:59.999Z",
            "2026-01-01T23:59: 1.000Z",
        ] {
            assert_eq!(parse(bad.as_bytes()), None, "{bad}");
        }
    }

    proptest! {
        #[test]
        fn a_time_is_read_back(ms in 0..=LAST.0) {
            prop_assert_eq!(parse(format(TimeMs(ms)).as_bytes()), Some(TimeMs(ms)));
        }
    }
}
