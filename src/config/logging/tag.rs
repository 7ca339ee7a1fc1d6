//! Docker's template of a log tag: text, and fields of the container in double braces. Other templates of Go's are
//! refused.
//!
//! Source of the facts: moby `daemon/logger/loginfo.go`, `daemon/logger/loggerutils/log_tag.go` (28.5).

use super::options::refused;
use crate::config::ConfigError;

const FIELDS: [(&str, TagField); 11] = [
    ("ID", TagField::ShortId),
    ("FullID", TagField::Id),
    ("ContainerID", TagField::Id),
    ("Name", TagField::Name),
    ("ContainerName", TagField::SlashedName),
    ("ImageID", TagField::ShortImageId),
    ("ImageFullID", TagField::ImageId),
    ("ContainerImageID", TagField::ImageId),
    ("ImageName", TagField::ImageName),
    ("ContainerImageName", TagField::ImageName),
    ("DaemonName", TagField::DaemonName),
];

/// A field of the container, of those that docker's templates have.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum TagField {
    ShortId,
    Id,
    Name,
    /// The name with a slash before it.
    SlashedName,
    ShortImageId,
    ImageId,
    ImageName,
    DaemonName,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) enum TagPart {
    Text(String),
    Field(TagField),
}

/// Parses a template. An empty one is docker's default, the container's short id.
///
/// # Errors
/// Shows the part that is no field.
pub(super) fn parse(template: Option<&str>) -> Result<Vec<TagPart>, ConfigError> {
    let Some(template) = template else { return Ok(vec![TagPart::Field(TagField::ShortId)]) };
    let wrong = |why: &str| refused("tag", template, why);
    if template.chars().any(char::is_control) {
        return Err(wrong("it has a control character"));
    }
    let (mut parts, mut rest) = (Vec::new(), template);
    while let Some((text, after)) = rest.split_once("{{") {
        let (inner, after) = after.split_once("}}").ok_or_else(|| wrong("a {{ has no }}"))?;
        let name = inner.trim().strip_prefix('.').unwrap_or_default();
        let field = FIELDS.iter().find(|(known, _)| *known == name).ok_or_else(|| {
            let known = FIELDS.map(|(known, _)| format!("{{{{.{known}}}}}")).join(" ");
            wrong(&format!("{{{{{inner}}}}} is not one of the fields that a tag can have here: {known}"))
        })?;
        parts.extend((!text.is_empty()).then(|| TagPart::Text(text.to_owned())));
        parts.push(TagPart::Field(field.1));
        rest = after;
    }
    parts.extend((!rest.is_empty()).then(|| TagPart::Text(rest.to_owned())));
    Ok(parts)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_tag_is_text_and_fields() {
        let text = |text: &str| TagPart::Text(text.to_owned());
        assert_eq!(parse(None).unwrap(), [TagPart::Field(TagField::ShortId)]);
        let parts = parse(Some("web/{{.Name}}-{{ .FullID }}")).unwrap();
        assert_eq!(
            parts,
            [text("web/"), TagPart::Field(TagField::Name), text("-"), TagPart::Field(TagField::Id)]
        );
        assert_eq!(parse(Some("plain }} text")).unwrap(), [text("plain }} text")]);
    }

    #[test]
    fn other_templates_are_refused() {
        for template in
            ["{{.Name", "{{Name}}", "{{.Nope}}", "{{index .ContainerLabels \"a\"}}", "{{}}", "a\nb"]
        {
            let error = parse(Some(template)).unwrap_err().to_string();
            assert!(error.contains("logging.config") && error.contains("tag = "), "{template}: {error}");
        }
        assert!(parse(Some("{{.Nope}}")).unwrap_err().to_string().contains("{{.ImageName}}"));
    }
}
