//! The command that repairs a policy.

use crate::product::Product;
use crate::role::quoted;

/// The policy that is written where the server does not say which ones the token has.
const OWN: &str = "meshca";

/// Returns a sentence with one command that adds a right to a policy of the token. The command keeps
/// the other rules of the policy, and makes one that is not there.
pub(crate) fn repair(
    product: Product,
    policy: Option<&str>,
    path: &str,
    capability: &str,
) -> String {
    let program = product.command();
    let escaped = path.replace('"', r#"\""#);
    let rule = format!(r#"path "{escaped}" {{ capabilities = ["{capability}"] }}"#);
    let rule = quoted(&rule);
    let (whose, name) = match policy {
        Some(name) => (format!("the token's policy `{name}`"), name),
        None => (
            format!("the policy `{OWN}`, which the token must have"),
            OWN,
        ),
    };
    let name = quoted(name);
    format!(
        "One command adds it to {whose}: `({program} policy read {name}; echo {rule}) | {program} policy write {name} -`"
    )
}

/// Returns the policy of a token to add to: the first that is its own.
pub(crate) fn own(policies: &[String]) -> Option<&str> {
    let mut policies = policies.iter().map(String::as_str);
    policies.find(|name| !matches!(*name, "default" | "root"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_command_adds_to_a_policy() {
        let policies = ["default".to_owned(), "mesh".to_owned(), "other".to_owned()];
        for (product, policy, path, expected) in [
            (
                Product::Vault,
                own(&policies),
                "pki/sign/mesh-dp",
                r#"One command adds it to the token's policy `mesh`: `(vault policy read mesh; echo 'path "pki/sign/mesh-dp" { capabilities = ["update"] }') | vault policy write mesh -`"#,
            ),
            (
                Product::OpenBao,
                own(&policies[..1]),
                r#"team's/"pki"/sign/a"#,
                r#"One command adds it to the policy `meshca`, which the token must have: `(bao policy read meshca; echo 'path "team'\''s/\"pki\"/sign/a" { capabilities = ["update"] }') | bao policy write meshca -`"#,
            ),
        ] {
            assert_eq!(repair(product, policy, path, "update"), expected);
        }
    }
}
