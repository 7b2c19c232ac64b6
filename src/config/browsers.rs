//! Which pages of other sites may call the server from a browser.

use std::str::FromStr;

use clap::Args;

/// Most origins that can be named.
const MAX_ORIGINS: usize = 256;

/// Who may call from a browser.
#[derive(Args, Clone, Debug, Default)]
#[command(next_help_heading = "Server")]
pub struct BrowserArgs {
    /// Pages of other sites that may call the server from a browser: a JSON list of origins
    /// (`["https://chat.example.org"]`), or `["*"]` for all; none if left out.
    #[arg(long, value_name = "JSON", default_value = "[]")]
    pub allowed_origins: AllowedOrigins,
}

/// The sites whose pages may call the server from a browser.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AllowedOrigins {
    /// All there are.
    Any,
    /// These, as browsers write them: `https://host`, with `:port` where it is not the scheme's own. May be empty.
    List(Vec<String>),
}

impl Default for AllowedOrigins {
    fn default() -> Self {
        Self::List(Vec::new())
    }
}

impl FromStr for AllowedOrigins {
    type Err = String;

    /// Reads a JSON list, as vLLM has it, or one origin (or `*`) as it stands.
    fn from_str(text: &str) -> Result<Self, String> {
        let text = text.trim();
        let list = match text.starts_with('[') {
            true => serde_json::from_str::<Vec<String>>(text).map_err(|error| format!("is no JSON list: {error}"))?,
            false => vec![text.to_owned()],
        };
        if list.len() > MAX_ORIGINS {
            return Err(format!("has {} entries, at most {MAX_ORIGINS} are allowed", list.len()));
        }
        if list.iter().any(|origin| origin == "*") {
            return Ok(Self::Any);
        }
        match list.iter().find(|origin| !is_origin(origin)) {
            Some(wrong) => {
                let cut: String = wrong.chars().take(80).collect();
                Err(format!("has {cut:?}: an origin is scheme://host or scheme://host:port, in lower case, no more"))
            }
            None => Ok(Self::List(list)),
        }
    }
}

/// Whether a browser could send this as `Origin`.
fn is_origin(text: &str) -> bool {
    let Some((scheme, authority)) = text.split_once("://") else { return false };
    let scheme_fits = scheme.starts_with(|c: char| c.is_ascii_lowercase())
        && scheme.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || b"+-.".contains(&c));
    let (host, port) = match authority.rsplit_once(':') {
        Some((host, port)) if !port.ends_with(']') => (host, Some(port)),
        _ => (authority, None),
    };
    let host_fits = match host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        Some(address) => address.parse::<std::net::Ipv6Addr>().is_ok(),
        None => {
            !host.is_empty()
                && host.bytes().all(|c| c.is_ascii_lowercase() || c.is_ascii_digit() || b"-._".contains(&c))
        }
    };
    scheme_fits && host_fits && port.is_none_or(|port| port.parse::<u16>().is_ok_and(|port| port > 0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_list_is_read_as_vllm_has_it_and_one_origin_as_it_stands() {
        let list = |origins: &[&str]| AllowedOrigins::List(origins.iter().map(|&origin| origin.into()).collect());
        let cases = [
            ("[]", list(&[])),
            (r#"["*"]"#, AllowedOrigins::Any),
            ("*", AllowedOrigins::Any),
            (r#"["https://a.example", "http://[::1]:8080"]"#, list(&["https://a.example", "http://[::1]:8080"])),
            ("http://localhost:3000", list(&["http://localhost:3000"])),
            ("chrome-extension://abcdef", list(&["chrome-extension://abcdef"])),
        ];
        for (text, want) in cases {
            assert_eq!(text.parse(), Ok(want), "{text}");
        }
    }

    #[test]
    fn what_no_browser_would_send_is_refused_by_name() {
        for text in [
            "a.example",
            "https://a.example/",
            "https://a.example/path",
            "https://A.example",
            "https://a.example:99999",
            "https://a.example:",
            "https://",
            "https://[::g]",
            "://a",
            r#"["https://a.example", "b"]"#,
            r#"{"a": 1}"#,
            "[1]",
            "",
        ] {
            assert!(text.parse::<AllowedOrigins>().is_err(), "{text}");
        }
        let many = serde_json::to_string(&vec!["https://a.example"; MAX_ORIGINS + 1]).unwrap();
        assert!(many.parse::<AllowedOrigins>().unwrap_err().contains("at most"));
    }
}
