//! From a `User-Agent` to the family of programs that sent it.

/// Families by what tells them, the special before the general: Edge says that it is Chrome, and
/// Chrome that it is Safari.
const FAMILIES: [(&str, &str); 22] = [
    ("bot", "Bot"),
    ("crawler", "Bot"),
    ("spider", "Bot"),
    ("edg", "Edge"),
    ("opera", "Opera"),
    ("opr/", "Opera"),
    ("samsungbrowser", "SamsungBrowser"),
    ("firefox", "Firefox"),
    ("fxios", "Firefox"),
    ("chrome", "Chrome"),
    ("crios", "Chrome"),
    ("chromium", "Chrome"),
    ("safari", "Safari"),
    ("applewebkit", "Safari"),
    ("trident", "Internet Explorer"),
    ("internet explorer", "Internet Explorer"),
    ("msie", "Internet Explorer"),
    ("curl", "curl"),
    ("wget", "Wget"),
    ("python", "Python"),
    ("okhttp", "okhttp"),
    ("java", "Java"),
];
/// Whatever is none of them: an unknown name could be a person's own program.
const OTHER: &str = "Other";
/// Characters of the longest family's name.
pub const LONGEST_CHARS: u32 = 17;

/// The family of a user agent; empty stays empty.
pub fn family(agent: &str) -> &'static str {
    if agent.is_empty() {
        return "";
    }
    let agent = agent.to_ascii_lowercase();
    let found = FAMILIES.iter().find(|(mark, _)| agent.contains(mark));
    found.map_or(OTHER, |(_, family)| family)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_family_is_its_own_and_fits() {
        for (_, name) in FAMILIES {
            assert_eq!(family(name), name);
            assert!(name.chars().count() <= LONGEST_CHARS as usize, "{name}");
        }
        assert_eq!(family(OTHER), OTHER);
    }

    #[test]
    fn agents_of_the_wild_are_told() {
        for (agent, expected) in [
            ("Mozilla/5.0 (Windows NT 10.0) AppleWebKit/537.36 Chrome/126 Safari/537.36", "Chrome"),
            ("Mozilla/5.0 (X11) AppleWebKit/537.36 Chrome/126 Safari/537.36 Edg/126", "Edge"),
            ("Mozilla/5.0 (iPhone) AppleWebKit/605.1.15 Version/17.5", "Safari"),
            ("Opera/9.80 (J2ME/MIDP; Opera Mini/7.1; U; en) Presto/2.12", "Opera"),
            ("curl/8.5.0", "curl"),
            ("ann's own client (ann@example.org)", "Other"),
            ("-", "Other"),
            ("", ""),
        ] {
            assert_eq!(family(agent), expected, "{agent}");
        }
    }
}
