//! AWS Private CA, as moto with our plugin plays it, does what AWS promises.

mod moto {
    use std::collections::BTreeSet;
    use std::sync::Arc;
    use std::time::{Duration, UNIX_EPOCH};

    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use der::oid::AssociatedOid;
    use der::{Decode, Encode};
    use meshca_testenv::needs;
    use meshca_testenv::servers::{Aws, AwsCaOptions};
    use rcgen::string::Ia5String;
    use rcgen::{
        CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, KeyPair,
        KeyUsagePurpose, SanType,
    };
    use rustls_pki_types::pem::PemObject;
    use rustls_pki_types::{CertificateDer, UnixTime};
    use serde_json::{Value, json};
    use webpki::{EndEntityCert, KeyUsage};
    use x509_cert::Certificate;
    use x509_cert::ext::pkix::name::GeneralName;
    use x509_cert::ext::pkix::{
        AuthorityKeyIdentifier, BasicConstraints, ExtendedKeyUsage, KeyUsage as KeyUsageExtension,
        SubjectAltName, SubjectKeyIdentifier,
    };

    const ID: &str = "spiffe://mesh.example/ns/shop/sa/cart";
    const DAY: u64 = 24 * 60 * 60;
    const SERVER_AUTH: &str = "1.3.6.1.5.5.7.3.1";
    const CLIENT_AUTH: &str = "1.3.6.1.5.5.7.3.2";
    const EMAIL: &str = "1.3.6.1.5.5.7.3.4";

    /// A CSR without a subject, for one URI or none.
    fn params(uri: Option<&str>) -> CertificateParams {
        let mut params = CertificateParams::default();
        params.distinguished_name = DistinguishedName::new();
        params.subject_alt_names = uri
            .map(|uri| SanType::URI(Ia5String::try_from(uri).unwrap()))
            .into_iter()
            .collect();
        params
    }

    fn csr_of(params: &CertificateParams) -> String {
        let csr = params.serialize_request(&KeyPair::generate().unwrap());
        STANDARD.encode(csr.unwrap().pem().unwrap())
    }

    fn csr() -> String {
        csr_of(&params(Some(ID)))
    }

    /// IssueCertificate with as little as it takes.
    fn order(ca: &str) -> Value {
        json!({
            "CertificateAuthorityArn": ca,
            "Csr": csr(),
            "SigningAlgorithm": "SHA256WITHECDSA",
            "Validity": {"Type": "DAYS", "Value": 1},
        })
    }

    /// With other members, or without those that are null.
    fn with(body: &Value, changes: Value) -> Value {
        let mut body = body.clone();
        let members = body.as_object_mut().unwrap();
        for (name, value) in changes.as_object().unwrap().clone() {
            match value.is_null() {
                true => members.remove(&name),
                false => members.insert(name, value),
            };
        }
        body
    }

    fn template(name: &str) -> String {
        format!("arn:aws:acm-pca:::template/{name}")
    }

    fn certificates(pem: &Value) -> Vec<CertificateDer<'static>> {
        CertificateDer::pem_slice_iter(pem.as_str().unwrap().as_bytes())
            .collect::<Result<_, _>>()
            .unwrap()
    }

    /// What comes of IssueCertificate, and the chain above it.
    async fn issue(aws: &Aws, order: &Value) -> (Certificate, Vec<CertificateDer<'static>>) {
        let arn = issue_arn(aws, order).await;
        let ca = order["CertificateAuthorityArn"].as_str().unwrap();
        let answer = aws.certificate(ca, &arn).await.unwrap();
        let leaf = certificates(&answer["Certificate"]);
        assert_eq!(leaf.len(), 1);
        let chain = match answer.get("CertificateChain") {
            Some(chain) => certificates(chain),
            None => Vec::new(),
        };
        (Certificate::from_der(&leaf[0]).unwrap(), chain)
    }

    async fn issue_arn(aws: &Aws, order: &Value) -> String {
        let answer = aws.call("IssueCertificate", order.clone()).await.unwrap();
        answer["CertificateArn"].as_str().unwrap().to_owned()
    }

    /// The type of the error that it must answer.
    async fn refused(aws: &Aws, operation: &str, body: &Value) -> String {
        let (status, answer) = aws.request(operation, body).await.unwrap();
        assert_eq!(status, 400, "{operation} {body}: {answer}");
        assert!(answer["message"].is_string(), "{answer}");
        answer["__type"].as_str().unwrap().to_owned()
    }

    async fn describe(aws: &Aws, ca: &str) -> Value {
        let body = json!({"CertificateAuthorityArn": ca});
        let answer = aws.call("DescribeCertificateAuthority", body).await;
        answer.unwrap()["CertificateAuthority"].clone()
    }

    fn extension<T>(certificate: &Certificate) -> Option<(bool, T)>
    where
        T: for<'a> Decode<'a, Error = der::Error> + AssociatedOid,
    {
        certificate.tbs_certificate().get_extension::<T>().unwrap()
    }

    fn usages(certificate: &Certificate) -> Vec<String> {
        extension::<ExtendedKeyUsage>(certificate)
            .map(|(_, usage)| usage.0.iter().map(ToString::to_string).collect())
            .unwrap_or_default()
    }

    fn uris(certificate: &Certificate) -> Vec<String> {
        let (_, names) = extension::<SubjectAltName>(certificate).unwrap();
        let uri = |name: &GeneralName| match name {
            GeneralName::UniformResourceIdentifier(uri) => uri.to_string(),
            other => panic!("{other:?}"),
        };
        names.0.iter().map(uri).collect()
    }

    /// Seconds since 1970: its beginning and its end.
    fn validity(certificate: &Certificate) -> (u64, u64) {
        let validity = certificate.tbs_certificate().validity();
        let seconds = |time: x509_cert::time::Time| {
            time.to_system_time()
                .duration_since(UNIX_EPOCH)
                .unwrap()
                .as_secs()
        };
        (seconds(validity.not_before), seconds(validity.not_after))
    }

    fn now() -> u64 {
        UnixTime::now().as_secs()
    }

    /// Creates one that still needs its certificate, and returns it with its CSR.
    async fn pending(aws: &Aws, kind: &str) -> (String, Value) {
        let body = json!({
            "CertificateAuthorityType": kind,
            "CertificateAuthorityConfiguration": {
                "KeyAlgorithm": "EC_prime256v1",
                "SigningAlgorithm": "SHA256WITHECDSA",
                "Subject": {"Country": "NZ", "Organization": "Mesh", "CommonName": "pending"},
            },
        });
        let made = aws.call("CreateCertificateAuthority", body).await.unwrap();
        let ca = made["CertificateAuthorityArn"].as_str().unwrap().to_owned();
        let body = json!({"CertificateAuthorityArn": ca});
        let csr = aws.call("GetCertificateAuthorityCsr", body).await.unwrap();
        (ca, STANDARD.encode(csr["Csr"].as_str().unwrap()).into())
    }

    #[tokio::test]
    async fn chains_lead_from_the_issuer_to_the_root() {
        needs!(Aws::program());
        let aws = Aws::start().await.unwrap();
        let now = UnixTime::now();
        // Keys from the root downwards, and how long the key of the last is.
        let table: [(&[&str], &str, &str, usize); 5] = [
            (&["EC_prime256v1"], "SHA256WITHECDSA", "256", 65),
            (&["EC_secp384r1"], "SHA384WITHECDSA", "384", 97),
            (&["RSA_2048"], "SHA256WITHRSA", "rsa", 270),
            (&["RSA_2048", "EC_prime256v1"], "SHA256WITHECDSA", "256", 65),
            (
                &["EC_prime256v1", "EC_secp384r1", "RSA_2048"],
                "SHA512WITHRSA",
                "rsa",
                270,
            ),
        ];
        for (keys, algorithm, name, key_length) in table {
            println!("{keys:?}");
            let mut cas: Vec<String> = Vec::new();
            for (depth, key) in keys.iter().enumerate() {
                let mut options = AwsCaOptions::new()
                    .with_key_algorithm(*key)
                    .with_path_length(u8::try_from(keys.len() - depth - 1).unwrap());
                if let Some(parent) = cas.last() {
                    options = options.signed_by(parent);
                }
                cas.push(aws.create_ca(&options).await.unwrap());
            }
            let mut expected = Vec::new();
            for (index, (ca, key)) in cas.iter().zip(keys).enumerate().rev() {
                let about = describe(&aws, ca).await;
                let kind = if index == 0 { "ROOT" } else { "SUBORDINATE" };
                assert_eq!(about["Arn"], json!(ca));
                assert_eq!(about["Status"], "ACTIVE");
                assert_eq!(about["Type"], kind);
                assert_eq!(about["UsageMode"], "GENERAL_PURPOSE");
                let configuration = &about["CertificateAuthorityConfiguration"];
                assert_eq!(configuration["KeyAlgorithm"], json!(key));
                let body = json!({"CertificateAuthorityArn": ca});
                let own = aws.call("GetCertificateAuthorityCertificate", body).await;
                let own = own.unwrap();
                let certificate = certificates(&own["Certificate"]).remove(0);
                let read = Certificate::from_der(&certificate).unwrap();
                let (not_before, not_after) = validity(&read);
                assert_eq!(about["NotBefore"].as_f64(), Some(not_before as f64));
                assert_eq!(about["NotAfter"].as_f64(), Some(not_after as f64));
                expected.push((certificate, own.get("CertificateChain").cloned()));
            }
            let above: Vec<_> = expected.iter().map(|(own, _)| own.clone()).collect();
            for (index, (_, chain)) in expected.iter().enumerate() {
                let rest = &above[index + 1..];
                match chain {
                    Some(chain) => assert_eq!(certificates(chain), rest),
                    None => assert_eq!(rest.len(), 0),
                }
            }

            let last = cas.last().unwrap();
            let (leaf, chain) = issue(
                &aws,
                &with(&order(last), json!({"SigningAlgorithm": algorithm})),
            )
            .await;
            assert_eq!(chain, above);
            let der = CertificateDer::from(leaf.to_der().unwrap());
            let root = webpki::anchor_from_trusted_cert(chain.last().unwrap()).unwrap();
            let end = EndEntityCert::try_from(&der).unwrap();
            for usage in [KeyUsage::client_auth(), KeyUsage::server_auth()] {
                end.verify_for_usage(
                    webpki::ALL_VERIFICATION_ALGS,
                    std::slice::from_ref(&root),
                    &chain[..chain.len() - 1],
                    now,
                    usage,
                    None,
                    None,
                )
                .unwrap();
            }
            let issuer = Certificate::from_der(&chain[0]).unwrap();
            let key = issuer.tbs_certificate().subject_public_key_info();
            assert_eq!(key.subject_public_key.raw_bytes().len(), key_length);
            let kind = match key.algorithm.oid.to_string().as_str() {
                "1.2.840.113549.1.1.1" => "rsa",
                _ => match key_length {
                    65 => "256",
                    _ => "384",
                },
            };
            assert_eq!(kind, name);
        }
    }

    #[tokio::test]
    async fn a_ca_goes_through_its_states() {
        needs!(Aws::program());
        let aws = Aws::start().await.unwrap();
        let (ca, own_csr) = pending(&aws, "ROOT").await;
        let body = json!({"CertificateAuthorityArn": ca});
        let update = with(&body, json!({"Status": "DISABLED"}));
        let about = describe(&aws, &ca).await;
        assert_eq!(about["Status"], "PENDING_CERTIFICATE");
        assert_eq!(about.get("NotAfter"), None);

        let state = "InvalidStateException";
        for (operation, body) in [
            ("GetCertificateAuthorityCertificate", &body),
            ("UpdateCertificateAuthority", &update),
            ("IssueCertificate", &order(&ca)),
        ] {
            assert_eq!(refused(&aws, operation, body).await, state, "{operation}");
        }

        let own = json!({
            "Csr": own_csr,
            "TemplateArn": template("RootCACertificate/V1"),
            "Validity": {"Type": "YEARS", "Value": 1},
        });
        let (certificate, chain) = issue(&aws, &with(&order(&ca), own.clone())).await;
        assert_eq!(chain, []);
        assert_eq!(
            certificate.tbs_certificate().subject().to_string(),
            certificate.tbs_certificate().issuer().to_string(),
        );
        let import = |certificate: &Certificate, chain: Option<&str>| {
            let der = CertificateDer::from(certificate.to_der().unwrap());
            let mut import = with(
                &body,
                json!({"Certificate": STANDARD.encode(meshca_testkit::pki::to_pem(&der))}),
            );
            if let Some(chain) = chain {
                import["CertificateChain"] = STANDARD.encode(chain).into();
            }
            import
        };
        let operation = "ImportCertificateAuthorityCertificate";
        let other_root = aws.create_ca(&AwsCaOptions::new()).await.unwrap();
        let (leaf, _) = issue(&aws, &order(&other_root)).await;
        let other = json!({"CertificateAuthorityArn": other_root});
        let other = aws.call("GetCertificateAuthorityCertificate", other).await;
        let other = other.unwrap()["Certificate"].as_str().unwrap().to_owned();
        let foreign = Certificate::from_der(&certificates(&json!(other))[0]).unwrap();
        let der = CertificateDer::from(certificate.to_der().unwrap());
        let itself = meshca_testkit::pki::to_pem(&der);
        let mismatch = "CertificateMismatchException";
        for (body, error) in [
            (import(&leaf, None), "MalformedCertificateException"),
            (import(&foreign, None), mismatch),
            (import(&certificate, Some(&other)), mismatch),
            (import(&certificate, Some(&itself)), mismatch),
        ] {
            assert_eq!(refused(&aws, operation, &body).await, error);
        }
        // Soon over, so that it need not be waited for long.
        let soon = json!({"Validity": {"Type": "ABSOLUTE", "Value": now() + 4}});
        let (brief, _) = issue(&aws, &with(&order(&ca), with(&own, soon))).await;
        aws.call(operation, import(&brief, None)).await.unwrap();
        assert_eq!(describe(&aws, &ca).await["Status"], "ACTIVE");
        let delete = "DeleteCertificateAuthority";
        assert_eq!(refused(&aws, delete, &body).await, state);

        // It issues one until its end, which is to be had afterwards, too.
        let short = json!({"Validity": {"Type": "ABSOLUTE", "Value": validity(&brief).1}});
        let last = issue_arn(&aws, &with(&order(&ca), short)).await;
        let begun = tokio::time::Instant::now();
        while describe(&aws, &ca).await["Status"] == "ACTIVE" {
            assert!(begun.elapsed() < Duration::from_secs(10));
            tokio::time::sleep(Duration::from_millis(100)).await;
        }
        assert_eq!(describe(&aws, &ca).await["Status"], "EXPIRED");
        assert_eq!(refused(&aws, "IssueCertificate", &order(&ca)).await, state);
        aws.certificate(&ca, &last).await.unwrap();

        // It is renewed by another certificate for the same key.
        issue_arn(&aws, &with(&order(&ca), own.clone())).await;
        let renewed = import(&certificate, None);
        aws.call(operation, renewed.clone()).await.unwrap();
        assert_eq!(describe(&aws, &ca).await["Status"], "ACTIVE");
        issue(&aws, &order(&ca)).await;

        aws.set_status(&ca, "DISABLED").await.unwrap();
        assert_eq!(describe(&aws, &ca).await["Status"], "DISABLED");
        for (operation, body) in [("IssueCertificate", &order(&ca)), (operation, &renewed)] {
            assert_eq!(refused(&aws, operation, body).await, state, "{operation}");
        }
        aws.certificate(&ca, &last).await.unwrap();
        aws.set_status(&ca, "ACTIVE").await.unwrap();
        issue(&aws, &order(&ca)).await;
        aws.set_status(&ca, "DISABLED").await.unwrap();
        aws.call(delete, body.clone()).await.unwrap();
        assert_eq!(describe(&aws, &ca).await["Status"], "DELETED");
        let get = with(&body, json!({"CertificateArn": last}));
        for (operation, body) in [
            ("IssueCertificate", &order(&ca)),
            ("GetCertificate", &get),
            ("GetCertificateAuthorityCertificate", &body),
            ("UpdateCertificateAuthority", &update),
        ] {
            assert_eq!(refused(&aws, operation, body).await, state, "{operation}");
        }
    }

    #[tokio::test]
    async fn templates_say_what_a_certificate_is_for() {
        needs!(Aws::program());
        let aws = Aws::start().await.unwrap();
        let ca = aws.create_ca(&AwsCaOptions::new()).await.unwrap();
        let mut params = params(Some(ID));
        params.distinguished_name.push(DnType::CommonName, "csr");
        params.key_usages = vec![KeyUsagePurpose::KeyAgreement];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::EmailProtection];
        let csr = csr_of(&params);
        let (server, client, email) = ([SERVER_AUTH], [CLIENT_AUTH], [EMAIL]);
        let both = [SERVER_AUTH, CLIENT_AUTH];
        let leaf = "digitalSignature keyEncipherment";
        let authority = "digitalSignature keyCertSign cRLSign";
        // The path length of a CA, the key usage, and the extended one.
        for (name, path_length, key_usage, extended) in [
            ("", None, leaf, &both[..]),
            ("EndEntityCertificate/V1", None, leaf, &both),
            ("EndEntityCertificate_APIPassthrough/V1", None, leaf, &both),
            ("EndEntityClientAuthCertificate/V1", None, leaf, &client),
            ("EndEntityServerAuthCertificate/V1", None, leaf, &server),
            (
                "BlankEndEntityCertificate_CSRPassthrough/V1",
                None,
                "keyAgreement",
                &email,
            ),
            (
                "BlankEndEntityCertificate_APICSRPassthrough/V1",
                None,
                "keyAgreement",
                &email,
            ),
            (
                "SubordinateCACertificate_PathLen0/V1",
                Some(0),
                authority,
                &[],
            ),
            (
                "SubordinateCACertificate_PathLen1/V1",
                Some(1),
                authority,
                &[],
            ),
            (
                "SubordinateCACertificate_PathLen2/V1",
                Some(2),
                authority,
                &[],
            ),
            (
                "SubordinateCACertificate_PathLen3/V1",
                Some(3),
                authority,
                &[],
            ),
        ] {
            println!("{name}");
            let arn = (!name.is_empty()).then(|| template(name));
            let body = with(&order(&ca), json!({"Csr": csr, "TemplateArn": arn}));
            let (certificate, chain) = issue(&aws, &body).await;
            let (critical, constraints) = extension::<BasicConstraints>(&certificate).unwrap();
            assert_eq!(constraints.ca, path_length.is_some());
            assert_eq!(constraints.path_len_constraint, path_length);
            assert_eq!(critical, constraints.ca);
            let (critical, found) = extension::<KeyUsageExtension>(&certificate).unwrap();
            assert!(critical);
            let bits = [
                ("digitalSignature", found.digital_signature()),
                ("keyEncipherment", found.key_encipherment()),
                ("keyAgreement", found.key_agreement()),
                ("keyCertSign", found.key_cert_sign()),
                ("cRLSign", found.crl_sign()),
            ];
            let bits: Vec<_> = bits.iter().filter(|bit| bit.1).map(|bit| bit.0).collect();
            assert_eq!(bits.join(" "), key_usage);
            assert_eq!(usages(&certificate), extended);
            assert_eq!(uris(&certificate), [ID]);
            let subject = certificate.tbs_certificate().subject().to_string();
            assert_eq!(subject, "CN=csr");
            let issuer = Certificate::from_der(&chain[0]).unwrap();
            let (_, own) = extension::<SubjectKeyIdentifier>(&issuer).unwrap();
            let (_, above) = extension::<AuthorityKeyIdentifier>(&certificate).unwrap();
            assert_eq!(above.key_identifier, Some(own.0));
        }

        // A CA of path length 1 may sign one of 0, and no other.
        let options = AwsCaOptions::new().signed_by(&ca).with_path_length(1);
        let subordinate = aws.create_ca(&options).await.unwrap();
        for (length, allowed) in [(0, true), (1, false), (3, false)] {
            let name = template(&format!("SubordinateCACertificate_PathLen{length}/V1"));
            let body = with(&order(&subordinate), json!({"TemplateArn": name}));
            let (status, answer) = aws.request("IssueCertificate", &body).await.unwrap();
            assert_eq!(status == 200, allowed, "{length}: {answer}");
        }
    }

    #[tokio::test]
    async fn what_the_api_passes_on_comes_before_the_csr() {
        needs!(Aws::program());
        let aws = Aws::start().await.unwrap();
        let ca = aws.create_ca(&AwsCaOptions::new()).await.unwrap();
        let other = "spiffe://mesh.example/other";
        let passthrough = json!({
            "Subject": {"CommonName": "api", "Organization": "Mesh"},
            "Extensions": {
                "SubjectAlternativeNames": [{"UniformResourceIdentifier": other}],
                "ExtendedKeyUsage": [{"ExtendedKeyUsageType": "EMAIL_PROTECTION"}],
            },
        });
        let both: &[&str] = &[SERVER_AUTH, CLIENT_AUTH];
        for (name, passed, extended) in [
            ("EndEntityCertificate/V1", false, both),
            ("EndEntityCertificate_APIPassthrough/V1", true, both),
            ("BlankEndEntityCertificate_CSRPassthrough/V1", false, &[]),
            (
                "BlankEndEntityCertificate_APICSRPassthrough/V1",
                true,
                &[EMAIL],
            ),
        ] {
            let body = json!({"TemplateArn": template(name), "ApiPassthrough": passthrough});
            let (certificate, _) = issue(&aws, &with(&order(&ca), body)).await;
            let subject = certificate.tbs_certificate().subject().to_string();
            let (expected, uri) = match passed {
                true => ("CN=api,O=Mesh", other),
                false => ("", ID),
            };
            assert_eq!(subject, expected, "{name}");
            assert_eq!(uris(&certificate), [uri], "{name}");
            assert_eq!(usages(&certificate), extended, "{name}");
        }
    }

    #[tokio::test]
    async fn validity_is_as_asked_and_within_the_cas() {
        needs!(Aws::program());
        let aws = Aws::start().await.unwrap();
        let options = AwsCaOptions::new().with_lifetime_days(12_000);
        let ca = aws.create_ca(&options).await.unwrap();
        let begun = now();
        // From and to, in seconds from now on.
        for (kind, value, from, to) in [
            ("DAYS", 1, DAY, DAY),
            ("MONTHS", 1, 28 * DAY, 31 * DAY),
            ("YEARS", 2, 730 * DAY, 731 * DAY),
            ("ABSOLUTE", begun + 600, 600, 600),
            (
                "END_DATE",
                491_231_235_959,
                2_524_607_999 - begun,
                2_524_607_999 - begun,
            ),
            (
                "END_DATE",
                20_491_231_235_959,
                2_524_607_999 - begun,
                2_524_607_999 - begun,
            ),
        ] {
            let body = json!({"Validity": {"Type": kind, "Value": value}});
            let (certificate, _) = issue(&aws, &with(&order(&ca), body)).await;
            let (not_before, not_after) = validity(&certificate);
            let passed = now() - begun;
            let lifetime = not_after - begun;
            assert!(
                (from..=to + passed).contains(&lifetime),
                "{kind} {value}: {lifetime} s"
            );
            // "By default, […] the issuance time minus 60 minutes."
            let backdated = begun + passed - not_before;
            assert!((3600..=3600 + passed).contains(&backdated), "{backdated} s");
        }
        let from = begun - 30;
        let body = json!({"ValidityNotBefore": {"Type": "ABSOLUTE", "Value": from}});
        let (certificate, _) = issue(&aws, &with(&order(&ca), body)).await;
        assert_eq!(validity(&certificate).0, from);

        for validity in [
            json!({"Type": "DAYS", "Value": 12_001}),
            json!({"Type": "YEARS", "Value": 9_000}),
            json!({"Type": "DAYS", "Value": 0}),
            json!({"Type": "HOURS", "Value": 1}),
            json!({"Type": "ABSOLUTE", "Value": begun - 1}),
            json!({"Type": "END_DATE", "Value": 20_491_331_000_000_u64}),
            json!({"Type": "END_DATE", "Value": 100_000_000_000_000_000_u64}),
        ] {
            let body = with(&order(&ca), json!({"Validity": validity}));
            let error = refused(&aws, "IssueCertificate", &body).await;
            assert_eq!(error, "ValidationException", "{body}");
        }
        for from in [
            json!({"Type": "DAYS", "Value": 1}),
            json!({"Type": "ABSOLUTE", "Value": begun + 2 * DAY}),
        ] {
            let body = with(&order(&ca), json!({"ValidityNotBefore": from}));
            let error = refused(&aws, "IssueCertificate", &body).await;
            assert_eq!(error, "ValidationException", "{body}");
        }

        let options = AwsCaOptions::new().short_lived();
        let short = aws.create_ca(&options).await.unwrap();
        let about = describe(&aws, &short).await;
        assert_eq!(about["UsageMode"], "SHORT_LIVED_CERTIFICATE");
        for (days, allowed) in [(1, true), (7, true), (8, false)] {
            let body = json!({"Validity": {"Type": "DAYS", "Value": days}});
            let body = with(&order(&short), body);
            match allowed {
                true => drop(issue(&aws, &body).await),
                false => assert_eq!(
                    refused(&aws, "IssueCertificate", &body).await,
                    "ValidationException"
                ),
            }
        }
    }

    #[tokio::test]
    async fn what_aws_refuses_is_refused_with_its_error() {
        needs!(Aws::program());
        let aws = Aws::start().await.unwrap();
        let ca = aws.create_ca(&AwsCaOptions::new()).await.unwrap();
        let rsa = AwsCaOptions::new().with_key_algorithm("RSA_2048");
        let rsa = aws.create_ca(&rsa).await.unwrap();
        let (place, _) = ca.rsplit_once('/').unwrap();
        let unknown = format!("{place}/00000000-0000-0000-0000-000000000000");
        let elsewhere = ca.replace("us-east-1", "eu-west-1");
        let tampered = {
            let pem = STANDARD.decode(csr()).unwrap();
            let pem = String::from_utf8(pem).unwrap();
            let body: String = pem.lines().filter(|line| !line.starts_with('-')).collect();
            let mut der = STANDARD.decode(body).unwrap();
            let at = der.len() - 60;
            der[at] ^= 1;
            let pem = format!(
                "-----BEGIN CERTIFICATE REQUEST-----\n{}\n-----END CERTIFICATE REQUEST-----\n",
                STANDARD.encode(der)
            );
            STANDARD.encode(pem)
        };
        let passthrough = |names: Value| {
            json!({
                "TemplateArn": template("EndEntityCertificate_APIPassthrough/V1"),
                "ApiPassthrough": {"Extensions": {"SubjectAlternativeNames": names}},
            })
        };
        let arn = "CertificateAuthorityArn";
        let malformed = "MalformedCSRException";
        let invalid = "InvalidArgsException";
        let validation = "ValidationException";
        for (what, changes, error) in [
            ("no ARN", json!({arn: "mesh"}), "InvalidArnException"),
            (
                "an ARN of another service",
                json!({arn: ca.replace("acm-pca", "acm")}),
                "InvalidArnException",
            ),
            (
                "no such CA",
                json!({arn: unknown}),
                "ResourceNotFoundException",
            ),
            (
                "another region's CA",
                json!({arn: elsewhere}),
                "ResourceNotFoundException",
            ),
            ("no CA", json!({arn: null}), validation),
            ("no CSR", json!({"Csr": null}), validation),
            (
                "a CSR that is none",
                json!({"Csr": STANDARD.encode("-----BEGIN")}),
                malformed,
            ),
            (
                "a CSR that was changed",
                json!({"Csr": tampered}),
                malformed,
            ),
            (
                "a CSR without names",
                json!({"Csr": csr_of(&params(None))}),
                malformed,
            ),
            (
                "an algorithm of RSA for EC",
                json!({"SigningAlgorithm": "SHA256WITHRSA"}),
                invalid,
            ),
            ("an algorithm of EC for RSA", json!({arn: rsa}), invalid),
            (
                "no such algorithm",
                json!({"SigningAlgorithm": "MD5"}),
                validation,
            ),
            (
                "no such template",
                json!({"TemplateArn": template("EndEntity/V1")}),
                invalid,
            ),
            (
                "a template of another partition",
                json!({"TemplateArn": "arn:aws-cn:acm-pca:::template/EndEntityCertificate/V1"}),
                invalid,
            ),
            (
                "a template that is no ARN",
                json!({"TemplateArn": "EndEntityCertificate/V1"}),
                "InvalidArnException",
            ),
            (
                "the root template for a leaf",
                json!({"TemplateArn": template("RootCACertificate/V1")}),
                invalid,
            ),
            (
                "a token of 37 characters",
                json!({"IdempotencyToken": "x".repeat(37)}),
                validation,
            ),
            (
                "a name that is two",
                passthrough(json!([{"DnsName": "a", "UniformResourceIdentifier": ID}])),
                invalid,
            ),
            (
                "a name that this stand-in cannot do",
                passthrough(json!([{"RegisteredId": "1.2.3"}])),
                invalid,
            ),
        ] {
            let body = with(&order(&ca), changes);
            let found = refused(&aws, "IssueCertificate", &body).await;
            assert_eq!(found, error, "{what}");
        }

        let other = aws.create_ca(&AwsCaOptions::new()).await.unwrap();
        let made = issue_arn(&aws, &order(&ca)).await;
        for (what, ca, certificate, error) in [
            ("no ARN", &ca, "mesh", "InvalidArnException"),
            ("a CA's ARN", &ca, ca.as_str(), "InvalidArnException"),
            (
                "another CA's",
                &other,
                made.as_str(),
                "ResourceNotFoundException",
            ),
            (
                "a CA's that is not there",
                &unknown,
                made.as_str(),
                "ResourceNotFoundException",
            ),
        ] {
            let body = json!({"CertificateAuthorityArn": ca, "CertificateArn": certificate});
            let found = refused(&aws, "GetCertificate", &body).await;
            assert_eq!(found, error, "{what}");
        }

        for (key, algorithm, error) in [
            ("RSA_2048", "SHA256WITHECDSA", invalid),
            ("EC_prime256v1", "SHA256WITHRSA", invalid),
            ("RSA_1024", "SHA256WITHRSA", validation),
        ] {
            let body = json!({
                "CertificateAuthorityType": "ROOT",
                "CertificateAuthorityConfiguration": {
                    "KeyAlgorithm": key,
                    "SigningAlgorithm": algorithm,
                    "Subject": {"CommonName": "mesh"},
                },
            });
            let found = refused(&aws, "CreateCertificateAuthority", &body).await;
            assert_eq!(found, error, "{key} {algorithm}");
        }
        let found = refused(&aws, "RevokeCertificate", &json!({})).await;
        assert_eq!(found, "UnknownOperationException");
        assert!(aws.call("RevokeCertificate", json!({})).await.is_err());
    }

    #[tokio::test]
    async fn a_token_makes_one_certificate_of_equal_requests() {
        needs!(Aws::program());
        let aws = Aws::start().await.unwrap();
        let ca = aws.create_ca(&AwsCaOptions::new()).await.unwrap();
        aws.control(json!({"reset": true})).await.unwrap();
        let token = json!({"IdempotencyToken": "x".repeat(36)});
        let order = with(&order(&ca), token);
        let first = issue_arn(&aws, &order).await;
        assert_eq!(issue_arn(&aws, &order).await, first);
        let mut seen = BTreeSet::from([first.clone()]);
        for changes in [
            json!({"IdempotencyToken": "y"}),
            json!({"IdempotencyToken": null}),
            json!({"IdempotencyToken": null}),
            json!({"Validity": {"Type": "DAYS", "Value": 2}}),
            json!({"Csr": csr()}),
        ] {
            let arn = issue_arn(&aws, &with(&order, changes.clone())).await;
            assert!(seen.insert(arn), "{changes}");
        }
        assert_eq!(issue_arn(&aws, &order).await, first);
        assert_eq!(aws.calls().await.unwrap()["issued"][&ca], json!(seen.len()));

        // Used up, it still knows what it has made; and it forgets that in time.
        let quota = json!({"lifetime_quota": seen.len()});
        aws.control(quota).await.unwrap();
        assert_eq!(issue_arn(&aws, &order).await, first);
        aws.control(json!({"lifetime_quota": null, "token_seconds": 0}))
            .await
            .unwrap();
        assert_ne!(issue_arn(&aws, &order).await, first);
    }

    #[tokio::test]
    async fn a_certificate_is_in_progress_as_often_as_told() {
        needs!(Aws::program());
        let aws = Aws::start().await.unwrap();
        let ca = aws.create_ca(&AwsCaOptions::new()).await.unwrap();
        aws.control(json!({"reset": true, "polls": 3}))
            .await
            .unwrap();
        for _ in 0..2 {
            let arn = issue_arn(&aws, &order(&ca)).await;
            let get = json!({"CertificateAuthorityArn": ca, "CertificateArn": arn});
            for _ in 0..3 {
                let error = refused(&aws, "GetCertificate", &get).await;
                assert_eq!(error, "RequestInProgressException");
            }
            let first = aws.call("GetCertificate", get.clone()).await.unwrap();
            let again = aws.call("GetCertificate", get).await.unwrap();
            assert_eq!(first, again);
        }
        assert_eq!(aws.calls().await.unwrap()["GetCertificate"], 10);
        // The dance of a new CA waits, too.
        aws.create_ca(&AwsCaOptions::new()).await.unwrap();
    }

    #[tokio::test]
    async fn quotas_are_kept() {
        needs!(Aws::program());
        let aws = Aws::start().await.unwrap();
        let ca = aws.create_ca(&AwsCaOptions::new()).await.unwrap();
        // Its own certificate is one, until that is forgotten.
        assert_eq!(aws.calls().await.unwrap()["issued"], json!({&ca: 1}));
        aws.control(json!({"reset": true, "lifetime_quota": 2}))
            .await
            .unwrap();
        issue(&aws, &order(&ca)).await;
        issue(&aws, &order(&ca)).await;
        let found = refused(&aws, "IssueCertificate", &order(&ca)).await;
        assert_eq!(found, "LimitExceededException");
        assert_eq!(aws.calls().await.unwrap()["issued"], json!({&ca: 2}));

        // So slow that nothing flows back while this runs.
        aws.control(
            json!({"reset": true, "rate": {"IssueCertificate": 0.001, "GetCertificate": 75}}),
        )
        .await
        .unwrap();
        let arn = issue_arn(&aws, &order(&ca)).await;
        let found = refused(&aws, "IssueCertificate", &order(&ca)).await;
        assert_eq!(found, "ThrottlingException");
        aws.certificate(&ca, &arn).await.unwrap();
        aws.control(json!({"rate": {"IssueCertificate": 5}}))
            .await
            .unwrap();
        let begun = tokio::time::Instant::now();
        let (mut done, mut throttled) = (0, 0);
        while done < 10 {
            match aws.request("IssueCertificate", &order(&ca)).await.unwrap() {
                (200, _) => done += 1,
                (_, answer) => {
                    assert_eq!(answer["__type"], "ThrottlingException");
                    throttled += 1;
                }
            }
        }
        // A burst of five at once, and the others at five per second.
        assert!(begun.elapsed() > Duration::from_millis(900));
        assert!(throttled > 0);
        assert_eq!(
            aws.calls().await.unwrap()["IssueCertificate"],
            json!(2 + done + throttled)
        );
        assert_eq!(aws.calls().await.unwrap()["issued"], json!({&ca: 11}));
        for limit in [json!({"IssueCertificate": null}), json!(null)] {
            let slow = json!({"rate": {"IssueCertificate": 0.001}});
            aws.control(slow).await.unwrap();
            aws.control(json!({"rate": limit})).await.unwrap();
            for _ in 0..5 {
                issue_arn(&aws, &order(&ca)).await;
            }
        }
    }

    #[tokio::test]
    async fn errors_are_answered_as_told() {
        needs!(Aws::program());
        let aws = Aws::start().await.unwrap();
        let ca = aws.create_ca(&AwsCaOptions::new()).await.unwrap();
        aws.control(json!({"reset": true})).await.unwrap();
        let fail = |error: &str, more: Value| {
            let failure = json!({"operation": "IssueCertificate", "error": error});
            json!({"fail": with(&failure, more)})
        };
        let throttling = "ThrottlingException";
        let token = with(&order(&ca), json!({"IdempotencyToken": "one"}));
        // What it is told, what it answers, and how many certificates there are then.
        for (settings, expected, issued) in [
            (
                fail(throttling, json!({"times": 2, "message": "slowly"})),
                vec![(400, throttling), (400, throttling), (200, "")],
                1,
            ),
            (
                fail("InternalFailure", json!({})),
                vec![(500, "InternalFailure"), (200, "")],
                1,
            ),
            (
                fail("ServiceUnavailable", json!({"after": true})),
                vec![(503, "ServiceUnavailable"), (200, "")],
                1,
            ),
            (
                fail("AccessDeniedException", json!({"status": 403})),
                vec![(403, "AccessDeniedException"), (200, "")],
                1,
            ),
        ] {
            println!("{settings}");
            aws.control(settings).await.unwrap();
            for (status, error) in expected {
                let (found, answer) = aws.request("IssueCertificate", &token).await.unwrap();
                assert_eq!(found, status, "{answer}");
                if !error.is_empty() {
                    assert_eq!(answer["__type"], error);
                }
                // Other operations are left alone.
                describe(&aws, &ca).await;
            }
            assert_eq!(aws.calls().await.unwrap()["issued"][&ca], issued);
        }

        // An answer that is lost without a token has made a certificate.
        aws.control(fail("InternalFailure", json!({"after": true})))
            .await
            .unwrap();
        let (status, _) = aws.request("IssueCertificate", &order(&ca)).await.unwrap();
        assert_eq!(status, 500);
        assert_eq!(aws.calls().await.unwrap()["issued"][&ca], 2);

        aws.control(fail(throttling, json!({"times": 1000})))
            .await
            .unwrap();
        aws.control(json!({"fail": null})).await.unwrap();
        issue(&aws, &order(&ca)).await;
        aws.control(json!({"reset": true})).await.unwrap();
        assert_eq!(aws.calls().await.unwrap(), json!({"issued": {&ca: 0}}));

        for settings in [
            json!({"unknown": 1}),
            json!({"polls": "many"}),
            json!({"fail": {"operation": "Issue", "error": "x"}}),
            json!({"fail": {"operation": "IssueCertificate"}}),
            json!({"fail": {"operation": "IssueCertificate", "error": "x", "time": 1}}),
            json!({"rate": {"Issue": 1}}),
            json!([]),
        ] {
            assert!(aws.control(settings.clone()).await.is_err(), "{settings}");
        }
    }

    #[tokio::test(flavor = "multi_thread", worker_threads = 2)]
    async fn a_thousand_certificates_take_seconds() {
        needs!(Aws::program());
        let aws = Arc::new(Aws::start().await.unwrap());
        let ca = aws.create_ca(&AwsCaOptions::new()).await.unwrap();
        aws.control(json!({"reset": true})).await.unwrap();
        let begun = tokio::time::Instant::now();
        let mut tasks = Vec::new();
        for _ in 0..8 {
            let (aws, ca) = (Arc::clone(&aws), ca.clone());
            tasks.push(tokio::spawn(async move {
                let mut serials = Vec::new();
                for _ in 0..125 {
                    let (certificate, _) = issue(&aws, &order(&ca)).await;
                    let serial = certificate.tbs_certificate().serial_number();
                    serials.push(serial.to_string());
                }
                serials
            }));
        }
        let mut serials = BTreeSet::new();
        for task in tasks {
            serials.extend(task.await.unwrap());
        }
        println!("{} ms", begun.elapsed().as_millis());
        assert_eq!(serials.len(), 1000);
        let calls = aws.calls().await.unwrap();
        assert_eq!(calls["IssueCertificate"], 1000);
        assert_eq!(calls["issued"][&ca], 1000);
        assert!(begun.elapsed() < Duration::from_secs(60));
    }

    #[tokio::test]
    async fn the_rest_is_motos_and_calls_are_signed() {
        needs!(Aws::program());
        let aws = Aws::start().await.unwrap();
        let client = reqwest::Client::builder().no_proxy().build().unwrap();
        let signed = |region: &str, service: &str| {
            format!("AWS4-HMAC-SHA256 Credential=test/20000101/{region}/{service}/aws4_request")
        };
        let identity = client
            .post(aws.address())
            .header("content-type", "application/x-www-form-urlencoded")
            .header("authorization", signed("us-east-1", "sts"))
            .body("Action=GetCallerIdentity&Version=2011-06-15")
            .send()
            .await
            .unwrap();
        let identity = identity.text().await.unwrap();
        assert!(
            identity.contains("<Account>123456789012</Account>"),
            "{identity}"
        );
        let ca = aws.create_ca(&AwsCaOptions::new()).await.unwrap();
        for (authorization, error) in [
            (None, "MissingAuthenticationTokenException"),
            (
                Some(signed("us-east-1", "acm")),
                "InvalidSignatureException",
            ),
            (
                Some(signed("eu-west-1", "acm-pca")),
                "ResourceNotFoundException",
            ),
        ] {
            let mut request = client
                .post(aws.address())
                .header("x-amz-target", "ACMPrivateCA.IssueCertificate")
                .body(order(&ca).to_string());
            if let Some(authorization) = authorization {
                request = request.header("authorization", authorization);
            }
            let answer = request.send().await.unwrap();
            assert_eq!(answer.status(), 400);
            let answer: Value = answer.json().await.unwrap();
            assert_eq!(answer["__type"], error);
        }
    }
}
