//! Resource text: what is read can be written, and reads back as the same.

use meshca_core::resource::{Documents, Form, FreeForm, Resource};

/// A text, as [`Resource::parse`] takes it.
pub fn resource(data: &[u8]) -> bool {
    match Resource::parse(data) {
        Err(report) => {
            assert!(report.has_errors(), "refused without an error: {report}");
            assert!(!report.to_string().is_empty(), "refused without a word");
            false
        }
        Ok(documents) => {
            for resource in &documents {
                reads_back(resource);
            }
            !documents.is_empty()
        }
    }
}

fn reads_back(resource: &Resource) {
    let yaml = resource.to_yaml().expect("what was read can be written");
    assert_eq!(one(&yaml), *resource, "{yaml}");
    let json = resource.to_json().expect("what was read can be written");
    assert_eq!(one(&json), *resource, "{json}");
    for form in [Form::Kubernetes, Form::Universal] {
        // A name that is one in Universal form only.
        if form == Form::Kubernetes && resource.metadata().name.contains('_') {
            assert!(resource.to_yaml_as(form).is_err());
            continue;
        }
        let there = portable(resource, form);
        assert_eq!(there.metadata().form, form);
        let back = portable(&there, resource.metadata().form);
        assert_eq!(portable(&back, form), there);
    }
    if let Err(report) = resource.validate() {
        panic!("what was read is not valid: {report}");
    }
}

/// In another form, without what the other form has no place for.
fn portable(resource: &Resource, form: Form) -> Resource {
    let text = resource
        .to_yaml_as(form)
        .expect("what was read can be written in either form");
    let mut there = one(&text);
    let metadata = there.metadata_mut();
    metadata.namespace = None;
    metadata.annotations.clear();
    metadata.rest = FreeForm::default();
    there
}

fn one(text: &str) -> Resource {
    let documents: Documents = match Resource::parse(text) {
        Ok(documents) => documents,
        Err(report) => panic!("what was written cannot be read: {report}\n{text}"),
    };
    assert_eq!(documents.len(), 1, "{text}");
    documents.into_iter().next().expect("there is one")
}
