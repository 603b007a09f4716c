"""moto with an AWS Private CA (acm-pca) that does what AWS's documentation promises.

    python3 aws.py -H 127.0.0.1 -p PORT

takes the arguments of `moto_server`. moto's own acm-pca gives every CA an RSA key and every certificate a year, and
knows neither validity nor idempotency nor quotas. Here it is replaced; every other service is moto's.

Each rule names the page of AWS's documentation that it comes from: "API_*" is in the API reference
(https://docs.aws.amazon.com/privateca/latest/APIReference/), the others are in the user guide
(https://docs.aws.amazon.com/privateca/latest/userguide/). Where AWS does not say which error it answers,
"undocumented" marks what is assumed.

What is not done is refused rather than ignored: CRLs, OCSP, revocation, tags, policies, keys other than those in
KEY_ALGORITHMS. Operations not in `PrivateCa.OPERATIONS` answer UnknownOperationException. A CA is never CREATING.

Two paths are for tests, and none of AWS's: `POST /meshca/control` (see `Controls`) and `GET /meshca/calls`.
"""

import base64
import binascii
import dataclasses
import datetime
import ipaddress
import json
import re
import sys
import threading
import time
import traceback
import uuid
from collections import Counter

import moto.server
from cryptography import x509
from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID, ExtensionOID, NameOID
from dateutil.relativedelta import relativedelta
from moto.core import DEFAULT_ACCOUNT_ID
from moto.moto_server.werkzeug_app import DomainDispatcherApplication
from moto.utilities.utils import get_partition
from werkzeug.wrappers import Request, Response

# "By default, […] the issuance time minus 60 minutes." (API_IssueCertificate, ValidityNotBefore)
BACKDATING = datetime.timedelta(minutes=60)

# "a maximum validity period of seven days" (short-lived-certificates)
SHORT_LIVED = datetime.timedelta(days=7)

# Length constraints of IdempotencyToken (API_IssueCertificate).
TOKEN_LENGTH = 36

# How long IssueCertificate knows an idempotency token. API_IssueCertificate said one minute for years, and says five
# now; a client that can live with the shorter time can live with both. `Controls` can change it.
TOKEN_SECONDS = 60

ARN = re.compile(r"arn:[\w+=/,.@-]+:acm-pca:[\w+=/,.@-]*:[0-9]*:[\w+=,.@-]+(/[\w+=,.@-]+)*")
CA_ARN = re.compile(r"arn:[\w-]+:acm-pca:(?P<region>[\w-]+):\d{12}:certificate-authority/[0-9a-f-]{36}")
CERTIFICATE_ARN = re.compile(CA_ARN.pattern + r"/certificate/[0-9a-f]{32}")
TEMPLATE_ARN = re.compile(r"arn:(?P<partition>[\w-]+):acm-pca:::template/(?P<name>\w+/V\d+)")

# The scope of a SigV4 signature. As in moto, the signature itself is not looked at.
CREDENTIAL = re.compile(r"AWS4-HMAC-SHA256 .*Credential=[^/,]+/\d{8}/(?P<region>[\w-]+)/(?P<service>[\w-]+)/aws4_request")

KEY_ALGORITHMS = {
    "EC_prime256v1": lambda: ec.generate_private_key(ec.SECP256R1()),
    "EC_secp384r1": lambda: ec.generate_private_key(ec.SECP384R1()),
    "RSA_2048": lambda: rsa.generate_private_key(public_exponent=65537, key_size=2048),
}

SIGNING_ALGORITHMS = {
    "SHA256WITHECDSA": ("EC", hashes.SHA256()),
    "SHA384WITHECDSA": ("EC", hashes.SHA384()),
    "SHA512WITHECDSA": ("EC", hashes.SHA512()),
    "SHA256WITHRSA": ("RSA", hashes.SHA256()),
    "SHA384WITHRSA": ("RSA", hashes.SHA384()),
    "SHA512WITHRSA": ("RSA", hashes.SHA512()),
}

# API_ASN1Subject, in its order, which is the order in the certificate (undocumented).
SUBJECT = {
    "Country": NameOID.COUNTRY_NAME,
    "Organization": NameOID.ORGANIZATION_NAME,
    "OrganizationalUnit": NameOID.ORGANIZATIONAL_UNIT_NAME,
    "DistinguishedNameQualifier": NameOID.DN_QUALIFIER,
    "State": NameOID.STATE_OR_PROVINCE_NAME,
    "CommonName": NameOID.COMMON_NAME,
    "SerialNumber": NameOID.SERIAL_NUMBER,
    "Locality": NameOID.LOCALITY_NAME,
    "Title": NameOID.TITLE,
    "Surname": NameOID.SURNAME,
    "GivenName": NameOID.GIVEN_NAME,
    "Initials": NameOID.INITIALS,
    "Pseudonym": NameOID.PSEUDONYM,
    "GenerationQualifier": NameOID.GENERATION_QUALIFIER,
}

# API_GeneralName
GENERAL_NAMES = {
    "UniformResourceIdentifier": x509.UniformResourceIdentifier,
    "DnsName": x509.DNSName,
    "IpAddress": lambda text: x509.IPAddress(ipaddress.ip_address(text)),
    "Rfc822Name": x509.RFC822Name,
    "DirectoryName": lambda fields: x509.DirectoryName(subject_name(fields)),
}

# API_KeyUsage, and what the standard's bits are called here.
KEY_USAGES = {
    "DigitalSignature": "digital_signature",
    "NonRepudiation": "content_commitment",
    "KeyEncipherment": "key_encipherment",
    "DataEncipherment": "data_encipherment",
    "KeyAgreement": "key_agreement",
    "KeyCertSign": "key_cert_sign",
    "CRLSign": "crl_sign",
    "EncipherOnly": "encipher_only",
    "DecipherOnly": "decipher_only",
}

# API_ExtendedKeyUsage
EXTENDED_KEY_USAGES = {
    "SERVER_AUTH": ExtendedKeyUsageOID.SERVER_AUTH,
    "CLIENT_AUTH": ExtendedKeyUsageOID.CLIENT_AUTH,
    "CODE_SIGNING": ExtendedKeyUsageOID.CODE_SIGNING,
    "EMAIL_PROTECTION": ExtendedKeyUsageOID.EMAIL_PROTECTION,
    "TIME_STAMPING": ExtendedKeyUsageOID.TIME_STAMPING,
    "OCSP_SIGNING": ExtendedKeyUsageOID.OCSP_SIGNING,
}

# CommonErrors: those that are the server's fault. In this protocol every other error is a 400.
SERVER_ERRORS = {"InternalFailure": 500, "InternalServerException": 500, "ServiceUnavailable": 503}


class Refusal(Exception):
    """An error as AWS answers it."""

    def __init__(self, error, message, status=None):
        super().__init__(message)
        self.error = error
        self.message = message
        self.status = status or SERVER_ERRORS.get(error, 400)


def violation(member, value, constraint):
    """A request that the service's model does not allow: ValidationException (CommonErrors)."""
    shown = "null" if value is None else f"'{value}'"
    return Refusal(
        "ValidationException",
        f"1 validation error detected: Value {shown} at '{member}' failed to satisfy constraint: Member must {constraint}",
    )


def required(parameters, name, kind=str):
    value = parameters.get(name)
    member = name[0].lower() + name[1:]
    if value is None:
        raise violation(member, value, "not be null")
    if not isinstance(value, kind):
        raise Refusal("SerializationException", f"{member} is not of type {kind.__name__}")
    return value


def one_of(parameters, name, allowed, default=None):
    value = parameters.get(name, default)
    if value not in allowed:
        raise violation(name[0].lower() + name[1:], value, f"satisfy enum value set: [{', '.join(allowed)}]")
    return value


def only(parameters, allowed, where):
    """What this stand-in does not do is refused, so that no test believes that it was done."""
    for name in parameters:
        if name not in allowed:
            raise Refusal("InvalidArgsException", f"{where}.{name} is not supported by this stand-in")


def blob(parameters, name):
    try:
        return base64.b64decode(required(parameters, name), validate=True)
    except binascii.Error as error:
        raise Refusal("SerializationException", f"{name} is not base64: {error}") from error


def arn(parameters, name, pattern):
    """ARNs of another form are InvalidArnException (API_IssueCertificate, Errors)."""
    value = required(parameters, name)
    if not pattern.fullmatch(value) or len(value) > 200:
        raise Refusal("InvalidArnException", f"{value} is not a valid ARN for {name}")
    return value


def utc_now():
    return datetime.datetime.now(datetime.timezone.utc)


def moment(validity, now, member):
    """The time that a Validity (API_Validity) means."""
    value = required(validity, "Value", int)
    if value < 1:
        raise violation(f"{member}.value", value, "have value greater than or equal to 1")
    kind = one_of(validity, "Type", ("END_DATE", "ABSOLUTE", "DAYS", "MONTHS", "YEARS"))
    try:
        if kind == "ABSOLUTE":
            return datetime.datetime.fromtimestamp(value, datetime.timezone.utc)
        if kind == "END_DATE":
            digits = str(value)
            if len(digits) <= 12:  # UTCTime; a number loses the leading zeros of its year
                digits = digits.zfill(12)
                digits = ("19" if digits >= "50" else "20") + digits
            if len(digits) != 14:
                raise ValueError("neither YYMMDDHHMMSS nor YYYYMMDDHHMMSS")
            return datetime.datetime.strptime(digits, "%Y%m%d%H%M%S").replace(tzinfo=datetime.timezone.utc)
        return now + relativedelta(**{kind.lower(): value})
    except (ValueError, OverflowError, OSError) as error:
        raise Refusal("ValidationException", f"{member}: {value} {kind}: {error}") from error


def subject_name(fields):
    only(fields, SUBJECT, "Subject")
    return x509.Name([x509.NameAttribute(oid, fields[name]) for name, oid in SUBJECT.items() if name in fields])


def general_name(names):
    # "Providing more than one option results in an InvalidArgsException error." (API_GeneralName)
    if len(names) != 1:
        raise Refusal("InvalidArgsException", "A general name must have exactly one option")
    only(names, GENERAL_NAMES, "SubjectAlternativeNames")
    ((kind, value),) = names.items()
    return GENERAL_NAMES[kind](value)


def key_usage(names):
    return x509.KeyUsage(**{bit: name in names for name, bit in KEY_USAGES.items()})


def extended_key_usage(usage):
    custom = usage.get("ExtendedKeyUsageObjectIdentifier")
    if custom is not None:
        return x509.ObjectIdentifier(custom)
    return EXTENDED_KEY_USAGES[one_of(usage, "ExtendedKeyUsageType", EXTENDED_KEY_USAGES)]


def pem(certificate):
    return certificate.public_bytes(serialization.Encoding.PEM).decode().strip()


def public_bytes(key):
    return key.public_bytes(serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo)


@dataclasses.dataclass(frozen=True)
class Template:
    """A row of template-definitions. Extensions that it does not define come from the API or the CSR, if it lets them."""

    basic_constraints: x509.BasicConstraints
    key_usage: tuple = None
    extended_key_usage: tuple = None
    from_api: bool = False
    from_csr: bool = False

    def extensions(self, csr, passthrough, subject):
        """What the request says, by OID: (extension, critical)."""
        # "the template definition has highest priority, followed by API passthrough values, followed by CSR passthrough
        # extensions" (template-order-of-operations). Every template takes the SAN from the CSR.
        found = {
            extension.oid: (extension.value, extension.critical)
            for extension in csr.extensions
            if self.from_csr or extension.oid == ExtensionOID.SUBJECT_ALTERNATIVE_NAME
        }
        if self.from_api:
            found.update((value.oid, (value, critical)) for value, critical in api_extensions(passthrough, subject))
        found[ExtensionOID.BASIC_CONSTRAINTS] = (self.basic_constraints, self.basic_constraints.ca)
        if self.key_usage is not None:
            found[ExtensionOID.KEY_USAGE] = (key_usage(self.key_usage), True)
        if self.extended_key_usage is not None:
            found[ExtensionOID.EXTENDED_KEY_USAGE] = (x509.ExtendedKeyUsage(self.extended_key_usage), False)
        return found


def api_extensions(passthrough, subject):
    """The extensions in an ApiPassthrough (API_Extensions), each with whether it is critical."""
    given = passthrough.get("Extensions") or {}
    only(given, ("SubjectAlternativeNames", "KeyUsage", "ExtendedKeyUsage", "CustomExtensions"), "Extensions")
    if names := given.get("SubjectAlternativeNames"):
        # RFC 5280, 4.2.1.6, wants it critical if it is the only name there is (undocumented).
        yield x509.SubjectAlternativeName([general_name(name) for name in names]), not list(subject)
    if usages := given.get("KeyUsage"):
        only(usages, KEY_USAGES, "KeyUsage")
        yield key_usage([name for name, wanted in usages.items() if wanted]), True
    if usages := given.get("ExtendedKeyUsage"):
        yield x509.ExtendedKeyUsage([extended_key_usage(usage) for usage in usages]), False
    for extension in given.get("CustomExtensions") or []:
        oid = x509.ObjectIdentifier(required(extension, "ObjectIdentifier"))
        yield x509.UnrecognizedExtension(oid, blob(extension, "Value")), bool(extension.get("Critical"))


def templates():
    """template-definitions, by name."""
    leaf = x509.BasicConstraints(ca=False, path_length=None)
    leaf_usage = ("DigitalSignature", "KeyEncipherment")
    server, client = ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH

    def authority(path_length):
        constraints = x509.BasicConstraints(ca=True, path_length=path_length)
        return Template(constraints, ("DigitalSignature", "KeyCertSign", "CRLSign"))

    return {
        "RootCACertificate/V1": authority(None),
        **{f"SubordinateCACertificate_PathLen{length}/V1": authority(length) for length in range(4)},
        "EndEntityCertificate/V1": Template(leaf, leaf_usage, (server, client)),
        "EndEntityCertificate_APIPassthrough/V1": Template(leaf, leaf_usage, (server, client), from_api=True),
        "EndEntityClientAuthCertificate/V1": Template(leaf, leaf_usage, (client,)),
        "EndEntityServerAuthCertificate/V1": Template(leaf, leaf_usage, (server,)),
        "BlankEndEntityCertificate_CSRPassthrough/V1": Template(leaf, from_csr=True),
        "BlankEndEntityCertificate_APICSRPassthrough/V1": Template(leaf, from_api=True, from_csr=True),
    }


TEMPLATES = templates()
ROOT = TEMPLATES["RootCACertificate/V1"]
DEFAULT_TEMPLATE = "EndEntityCertificate/V1"


def template_of(parameters, partition):
    if parameters.get("TemplateArn") is None:
        # "If you provide no ARN, then the EndEntityCertificate/V1 template is applied by default." (UsingTemplates)
        return TEMPLATES[DEFAULT_TEMPLATE]
    text = arn(parameters, "TemplateArn", ARN)
    match = TEMPLATE_ARN.fullmatch(text)
    # Undocumented: which error.
    if not match or match["name"] not in TEMPLATES:
        raise Refusal("InvalidArgsException", f"{text} is no template that is known here")
    if match["partition"] != partition:
        raise Refusal("InvalidArgsException", f"{text} is not in the partition {partition} of the certificate authority")
    return TEMPLATES[match["name"]]


def read_csr(data):
    """What "could not be verified or validated" is MalformedCSRException (PCATsExceptions)."""
    try:
        csr = x509.load_pem_x509_csr(data)
        named = len(list(csr.subject)) > 0 or any(
            extension.oid == ExtensionOID.SUBJECT_ALTERNATIVE_NAME for extension in csr.extensions
        )
        sound = csr.is_signature_valid
        csr.public_key()
    except (ValueError, UnsupportedAlgorithm, x509.DuplicateExtension) as error:
        raise Refusal("MalformedCSRException", f"The certificate signing request is invalid: {error}") from error
    if not sound:
        raise Refusal("MalformedCSRException", "The signature of the certificate signing request is invalid")
    # "A CSR must provide either a subject name or a subject alternative name or the request will be rejected."
    # (API_IssueCertificate, Csr; which error is undocumented)
    if not named:
        raise Refusal("MalformedCSRException", "The certificate signing request has neither a subject nor a SAN")
    return csr


class Authority:
    """A private CA."""

    def __init__(self, arn, kind, configuration, usage_mode):
        self.arn = arn
        self.kind = kind
        self.configuration = configuration
        self.usage_mode = usage_mode
        self.created = time.time()
        self.changed = self.created
        self.key = KEY_ALGORITHMS[configuration["KeyAlgorithm"]]()
        self.subject = subject_name(configuration["Subject"])
        self.csr = (
            x509.CertificateSigningRequestBuilder()
            .subject_name(self.subject)
            .add_extension(x509.BasicConstraints(ca=True, path_length=None), critical=True)
            .sign(self.key, self.hash_of(configuration["SigningAlgorithm"]))
        )
        self.certificate = None
        self.chain = []  # above the certificate: issuer first, root last
        self.disabled = False
        self.restorable_until = None  # set when it is deleted
        self.certificates = {}  # by ARN
        self.issued = 0
        self.tokens = {}  # (idempotency token, the other parameters): (ARN, when)

    @property
    def status(self):
        """PcaUpdateStatus. A CA that was disabled before it expired is disabled again after its renewal."""
        if self.restorable_until is not None:
            return "DELETED"
        if self.certificate is None:
            return "PENDING_CERTIFICATE"
        if self.certificate.not_valid_after_utc < utc_now():
            return "EXPIRED"
        return "DISABLED" if self.disabled else "ACTIVE"

    def require(self, *statuses):
        if self.status not in statuses:
            raise Refusal("InvalidStateException", f"The certificate authority {self.arn} is in the state {self.status}")

    @property
    def partition(self):
        return self.arn.split(":")[1]

    def hash_of(self, signing_algorithm):
        # "The specified signing algorithm family (RSA or ECDSA) must match the algorithm family of the CA's secret key."
        # (API_IssueCertificate). PCATsExceptions: InvalidArgsException.
        family, algorithm = SIGNING_ALGORITHMS[signing_algorithm]
        if family != self.configuration["KeyAlgorithm"].split("_")[0]:
            raise Refusal("InvalidArgsException", f"{signing_algorithm} does not fit the key of the certificate authority")
        return algorithm

    def describe(self):
        """API_CertificateAuthority"""
        described = {
            "Arn": self.arn,
            "OwnerAccount": self.arn.split(":")[4],
            "CreatedAt": self.created,
            "LastStateChangeAt": self.changed,
            "Type": self.kind,
            "Status": self.status,
            "CertificateAuthorityConfiguration": self.configuration,
            "RevocationConfiguration": {"CrlConfiguration": {"Enabled": False}, "OcspConfiguration": {"Enabled": False}},
            "KeyStorageSecurityStandard": "FIPS_140_2_LEVEL_3_OR_HIGHER",
            "UsageMode": self.usage_mode,
        }
        if self.certificate is not None:
            described["Serial"] = str(self.certificate.serial_number)
            described["NotBefore"] = self.certificate.not_valid_before_utc.timestamp()
            described["NotAfter"] = self.certificate.not_valid_after_utc.timestamp()
        if self.restorable_until is not None:
            described["RestorableUntil"] = self.restorable_until
        return described

    def issue(self, parameters, lifetime_quota, token_seconds):
        """IssueCertificate, and the ARN of the certificate."""
        template = template_of(parameters, self.partition)
        # A root signs itself before it is active, and again when it has expired.
        self.require(*(("PENDING_CERTIFICATE", "ACTIVE", "EXPIRED") if template is ROOT else ("ACTIVE",)))

        token = parameters.get("IdempotencyToken")
        if token is not None and not 1 <= len(token) <= TOKEN_LENGTH:
            raise violation("idempotencyToken", token, f"have length less than or equal to {TOKEN_LENGTH}")
        # "recognizes that you are requesting only one certificate and will issue only one" (API_IssueCertificate).
        # Undocumented: the same token with other parameters, which is another request here.
        request = (token, json.dumps(parameters, sort_keys=True))
        known, when = self.tokens.get(request, (None, 0))
        if token is not None and known and time.monotonic() - when < token_seconds:
            return known

        # "Each certificate authority (CA) has a quota of certificates that it can issue." (PCATsExceptions)
        if lifetime_quota is not None and self.issued >= lifetime_quota:
            message = f"The certificate authority has issued its {lifetime_quota} certificates"
            raise Refusal("LimitExceededException", message)

        certificate = self.sign(template, parameters)
        chain = [] if template is ROOT else [self.certificate, *self.chain]
        made = f"{self.arn}/certificate/{uuid.uuid4().hex}"
        self.certificates[made] = Issued(pem(certificate), "\n".join(pem(above) for above in chain))
        self.issued += 1
        if token is not None:
            self.tokens[request] = (made, time.monotonic())
        return made

    def sign(self, template, parameters):
        algorithm = self.hash_of(one_of(parameters, "SigningAlgorithm", SIGNING_ALGORITHMS))
        csr = read_csr(blob(parameters, "Csr"))
        not_before, not_after = self.validity(template, parameters)
        constraints = template.basic_constraints
        if template is ROOT:
            # "This template is used to issue self-signed root CA certificates." (template-definitions)
            if self.kind != "ROOT" or public_bytes(csr.public_key()) != public_bytes(self.key.public_key()):
                raise Refusal("InvalidArgsException", "The root template is for a root CA's own CSR")
        elif constraints.ca:
            # "The CA depth configured on a subordinate CA certificate must not exceed the limit set by its parents"
            # (API_IssueCertificate, TemplateArn; which error is undocumented)
            own = self.certificate.extensions.get_extension_for_class(x509.BasicConstraints).value.path_length
            if own is not None and constraints.path_length >= own:
                raise Refusal("InvalidArgsException", f"The certificate authority has the path length {own}")

        # "An APIPassthrough or APICSRPassthrough template variant must be selected, or else this parameter is ignored."
        # (API_IssueCertificate, ApiPassthrough)
        passthrough = parameters.get("ApiPassthrough") or {} if template.from_api else {}
        only(passthrough, ("Subject", "Extensions"), "ApiPassthrough")
        try:
            subject = subject_name(passthrough["Subject"]) if passthrough.get("Subject") else csr.subject
            extensions = template.extensions(csr, passthrough, subject)
            extensions[ExtensionOID.SUBJECT_KEY_IDENTIFIER] = (
                x509.SubjectKeyIdentifier.from_public_key(csr.public_key()),
                False,
            )
            extensions[ExtensionOID.AUTHORITY_KEY_IDENTIFIER] = (self.key_identifier(), False)
            builder = x509.CertificateBuilder(
                issuer_name=self.subject,
                subject_name=subject,
                public_key=csr.public_key(),
                serial_number=x509.random_serial_number(),
                not_valid_before=not_before,
                not_valid_after=not_after,
            )
            for extension, critical in extensions.values():
                builder = builder.add_extension(extension, critical)
        except (ValueError, TypeError) as error:
            raise Refusal("InvalidArgsException", f"The certificate cannot be made: {error}") from error
        return builder.sign(self.key, algorithm)

    def key_identifier(self):
        """ "[SKI from CA certificate]" (template-definitions)"""
        if self.certificate is not None:
            try:
                own = self.certificate.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
                return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(own)
            except x509.ExtensionNotFound:
                pass
        return x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())

    def validity(self, template, parameters):
        now = utc_now().replace(microsecond=0)
        not_after = moment(required(parameters, "Validity", dict), now, "validity")
        not_before = now - BACKDATING
        if (given := parameters.get("ValidityNotBefore")) is not None:
            # "expressed as an explicit date and time, using the Validity type value ABSOLUTE" (API_IssueCertificate)
            if given.get("Type") != "ABSOLUTE":
                raise Refusal("ValidationException", "ValidityNotBefore must be of the type ABSOLUTE")
            not_before = moment(given, now, "validityNotBefore")
        # "The minimum validity for a certificate using absolute time […] is one second." (API_Validity)
        if not_after <= now or not_after <= not_before:
            raise Refusal("ValidationException", "The validity must end after it begins, and not in the past")
        # "AWS Private CA does not perform validity checks on root CA certificates." (short-lived-certificates)
        if template is not ROOT:
            # "must not exceed the limit set on its parents in the CA hierarchy" (API_IssueCertificate, Validity)
            if not_after > self.certificate.not_valid_after_utc:
                raise Refusal(
                    "ValidationException",
                    "The certificate validity specified exceeds the certificate authority validity",
                )
            if self.usage_mode == "SHORT_LIVED_CERTIFICATE" and not_after - now > SHORT_LIVED:
                raise Refusal("ValidationException", "The certificate authority issues certificates of up to seven days")
        return not_before, not_after

    def install(self, certificate, chain):
        """ImportCertificateAuthorityCertificate"""
        # PcaUpdateStatus: the certificate of a disabled CA cannot be updated.
        self.require("PENDING_CERTIFICATE", "ACTIVE", "EXPIRED")
        try:
            (certificate,) = x509.load_pem_x509_certificates(certificate)
            chain = x509.load_pem_x509_certificates(chain) if chain else []
            constraints = certificate.extensions.get_extension_for_class(x509.BasicConstraints)
        except (ValueError, x509.ExtensionNotFound) as error:
            raise Refusal("MalformedCertificateException", f"The certificate is not valid: {error}") from error
        # "Basic constraints (must be marked critical)" (API_ImportCertificateAuthorityCertificate)
        if not (constraints.critical and constraints.value.ca):
            raise Refusal("MalformedCertificateException", "The certificate is not that of a certificate authority")
        mismatch = None
        if public_bytes(certificate.public_key()) != public_bytes(self.key.public_key()):
            mismatch = "The certificate is not for the key of the certificate authority"
        elif certificate.subject != self.subject:
            mismatch = "The certificate has not the subject of the certificate authority"
        elif (self.kind == "ROOT") != issued_by(certificate, certificate):
            # "Only a self-signed certificate can be imported as a root CA. A self-signed certificate cannot be imported as a
            # subordinate CA." (API_ImportCertificateAuthorityCertificate)
            mismatch = f"The certificate does not fit a certificate authority of the type {self.kind}"
        elif (self.kind == "ROOT") != (not chain):
            # "This parameter must be supplied when you import a subordinate CA. When you import a root CA, there is no
            # chain." (API_ImportCertificateAuthorityCertificate, CertificateChain)
            mismatch = "A subordinate certificate authority has a chain, and a root has none"
        elif not all(map(issued_by, [certificate, *chain], [*chain, (chain or [certificate])[-1]])):
            # "each certificate in the chain signs the one preceding", and the root is the last.
            mismatch = "The chain does not lead from the certificate to a root"
        if mismatch is not None:
            raise Refusal("CertificateMismatchException", mismatch)
        self.certificate, self.chain = certificate, chain
        self.changed = time.time()


def issued_by(certificate, issuer):
    try:
        certificate.verify_directly_issued_by(issuer)
    except (ValueError, TypeError, InvalidSignature):
        return False
    return True


@dataclasses.dataclass
class Issued:
    """A certificate of an Authority."""

    certificate: str
    chain: str
    polls: int = 0  # how often it was in progress when somebody asked


class Bucket:
    """So many requests per second, and at most as many at once."""

    def __init__(self, rate):
        self.rate = rate
        self.capacity = max(1.0, rate)
        self.tokens = self.capacity
        self.filled = time.monotonic()

    def take(self):
        now = time.monotonic()
        self.tokens = min(self.capacity, self.tokens + (now - self.filled) * self.rate)
        self.filled = now
        if self.tokens < 1:
            return False
        self.tokens -= 1
        return True


class Controls:
    """What a test can set, each by a member of the JSON that it posts.

    polls           how often GetCertificate says of each certificate that it is in progress; 0 at first
    fail            an error to answer: {"operation", "error", "message", "status", "times", "after"}; several add up, each
                    is answered `times` times (1 by default); with "after" the operation is done first, and its answer lost.
                    null forgets those that are left
    rate            requests per second, by operation; null, for one operation or all, takes the limit away
    lifetime_quota  how many certificates each CA may issue, its own among them if it is a root; null for no limit
    token_seconds   how long an idempotency token is known
    reset           true: all of this as it was at first, and every count back at zero. CAs and certificates stay.
    """

    FAIL = {"operation": str, "error": str, "message": str, "status": int, "times": int, "after": bool}

    def __init__(self):
        self.polls = 0
        self.failures = []
        self.buckets = {}
        self.lifetime_quota = None
        self.token_seconds = TOKEN_SECONDS

    def set(self, settings):
        setters = {
            "polls": self.set_polls,
            "fail": self.set_fail,
            "rate": self.set_rate,
            "lifetime_quota": self.set_lifetime_quota,
            "token_seconds": self.set_token_seconds,
        }
        for name, value in settings.items():
            if name not in setters:
                raise ValueError(f"{name} is no control")
            setters[name](value)

    def set_polls(self, polls):
        self.polls = int(polls)

    def set_lifetime_quota(self, quota):
        self.lifetime_quota = None if quota is None else int(quota)

    def set_token_seconds(self, seconds):
        self.token_seconds = float(seconds)

    def set_rate(self, rates):
        if rates is None:
            self.buckets = {}
            return
        for operation, rate in rates.items():
            check_operation(operation)
            self.buckets.pop(operation, None)
            if rate is not None:
                self.buckets[operation] = Bucket(float(rate))

    def set_fail(self, failure):
        if failure is None:
            self.failures = []
            return
        for name, value in failure.items():
            if not isinstance(value, self.FAIL.get(name, ())):
                raise ValueError(f"fail.{name} is not understood")
        check_operation(failure["operation"])
        if "error" not in failure:
            raise ValueError("fail.error is missing")
        self.failures.append({"times": 1, "after": False, **failure})

    def throttle(self, operation):
        # "When a request is throttled, AWS Private CA returns a ThrottlingException error." (API reference, Welcome)
        bucket = self.buckets.get(operation)
        if bucket is not None and not bucket.take():
            raise Refusal("ThrottlingException", "Rate exceeded")

    def next_failure(self, operation):
        for failure in self.failures:
            if failure["operation"] == operation and failure["times"] > 0:
                failure["times"] -= 1
                refusal = Refusal(failure["error"], failure.get("message", "told to fail"), failure.get("status"))
                return refusal, failure["after"]
        return None, False


def check_operation(name):
    if name not in PrivateCa.OPERATIONS:
        raise ValueError(f"{name} is no operation")


class PrivateCa:
    """The service. One lock holds all of its state together: an operation takes less than a millisecond."""

    def __init__(self):
        self.lock = threading.Lock()
        self.authorities = {}  # by ARN
        self.controls = Controls()
        self.calls = Counter()

    def call(self, operation, region, parameters):
        """Does an operation of the API, or raises a Refusal."""
        if operation not in self.OPERATIONS:
            raise Refusal("UnknownOperationException", f"{operation} is not known here")
        with self.lock:
            self.calls[operation] += 1
            self.controls.throttle(operation)
            failure, after = self.controls.next_failure(operation)
            if failure is not None and not after:
                raise failure
            try:
                return self.OPERATIONS[operation](self, region, parameters)
            finally:
                if failure is not None:
                    raise failure

    def control(self, settings):
        with self.lock:
            if settings.pop("reset", False):
                self.controls = Controls()
                self.calls.clear()
                for authority in self.authorities.values():
                    authority.issued = 0
            self.controls.set(settings)

    def counts(self):
        with self.lock:
            return {**self.calls, "issued": {arn: authority.issued for arn, authority in self.authorities.items()}}

    def authority(self, region, parameters):
        """The CA that is meant; one of another region is not found in this one."""
        name = arn(parameters, "CertificateAuthorityArn", CA_ARN)
        authority = self.authorities.get(name)
        if authority is None or CA_ARN.fullmatch(name)["region"] != region:
            raise Refusal("ResourceNotFoundException", f"Could not find the certificate authority {name}")
        return authority

    def create_certificate_authority(self, region, parameters):
        configuration = required(parameters, "CertificateAuthorityConfiguration", dict)
        only(configuration, ("KeyAlgorithm", "SigningAlgorithm", "Subject"), "CertificateAuthorityConfiguration")
        one_of(configuration, "KeyAlgorithm", KEY_ALGORITHMS)
        one_of(configuration, "SigningAlgorithm", SIGNING_ALGORITHMS)
        required(configuration, "Subject", dict)
        revocation = parameters.get("RevocationConfiguration") or {}
        if any(method.get("Enabled") for method in revocation.values()):
            raise Refusal("InvalidArgsException", "RevocationConfiguration is not supported by this stand-in")
        kind = one_of(parameters, "CertificateAuthorityType", ("ROOT", "SUBORDINATE"))
        # "The default value is GENERAL_PURPOSE." (API_CreateCertificateAuthority, UsageMode)
        usage_mode = one_of(parameters, "UsageMode", ("GENERAL_PURPOSE", "SHORT_LIVED_CERTIFICATE"), "GENERAL_PURPOSE")
        made = f"arn:{get_partition(region)}:acm-pca:{region}:{DEFAULT_ACCOUNT_ID}:certificate-authority/{uuid.uuid4()}"
        try:
            self.authorities[made] = Authority(made, kind, configuration, usage_mode)
        except (ValueError, TypeError) as error:
            raise Refusal("InvalidArgsException", f"The certificate authority cannot be made: {error}") from error
        return {"CertificateAuthorityArn": made}

    def describe_certificate_authority(self, region, parameters):
        return {"CertificateAuthority": self.authority(region, parameters).describe()}

    def get_certificate_authority_csr(self, region, parameters):
        authority = self.authority(region, parameters)
        authority.require("PENDING_CERTIFICATE", "ACTIVE", "DISABLED", "EXPIRED")
        return {"Csr": pem(authority.csr)}

    def import_certificate_authority_certificate(self, region, parameters):
        chain = blob(parameters, "CertificateChain") if parameters.get("CertificateChain") else b""
        self.authority(region, parameters).install(blob(parameters, "Certificate"), chain)
        return {}

    def get_certificate_authority_certificate(self, region, parameters):
        authority = self.authority(region, parameters)
        authority.require("ACTIVE", "DISABLED", "EXPIRED")
        answer = {"Certificate": pem(authority.certificate)}
        # "The chain does not include the CA certificate." (API_GetCertificateAuthorityCertificate)
        if authority.chain:
            answer["CertificateChain"] = "\n".join(pem(above) for above in authority.chain)
        return answer

    def update_certificate_authority(self, region, parameters):
        authority = self.authority(region, parameters)
        only(parameters, ("CertificateAuthorityArn", "Status"), "UpdateCertificateAuthority")
        # "must be in the ACTIVE or DISABLED state before you can update it" (API_UpdateCertificateAuthority)
        authority.require("ACTIVE", "DISABLED")
        authority.disabled = one_of(parameters, "Status", ("ACTIVE", "DISABLED")) == "DISABLED"
        authority.changed = time.time()
        return {}

    def delete_certificate_authority(self, region, parameters):
        authority = self.authority(region, parameters)
        # "A private CA can be deleted if it is in the PENDING_CERTIFICATE, CREATING, EXPIRED, DISABLED, or FAILED state."
        # (API_DeleteCertificateAuthority)
        authority.require("PENDING_CERTIFICATE", "EXPIRED", "DISABLED")
        days = parameters.get("PermanentDeletionTimeInDays", 30)
        if not 7 <= days <= 30:
            raise violation("permanentDeletionTimeInDays", days, "have a value from 7 to 30")
        authority.changed = time.time()
        authority.restorable_until = authority.changed + days * 24 * 60 * 60
        return {}

    def issue_certificate(self, region, parameters):
        controls = self.controls
        authority = self.authority(region, parameters)
        return {"CertificateArn": authority.issue(parameters, controls.lifetime_quota, controls.token_seconds)}

    def get_certificate(self, region, parameters):
        authority = self.authority(region, parameters)
        authority.require("PENDING_CERTIFICATE", "ACTIVE", "DISABLED", "EXPIRED")
        name = arn(parameters, "CertificateArn", CERTIFICATE_ARN)
        issued = authority.certificates.get(name)
        if issued is None:
            raise Refusal("ResourceNotFoundException", f"Could not find the certificate {name}")
        # API_GetCertificate, Errors.
        if issued.polls < self.controls.polls:
            issued.polls += 1
            raise Refusal("RequestInProgressException", "The certificate is not issued yet")
        answer = {"Certificate": issued.certificate}
        if issued.chain:
            answer["CertificateChain"] = issued.chain
        return answer

    OPERATIONS = {
        "CreateCertificateAuthority": create_certificate_authority,
        "DescribeCertificateAuthority": describe_certificate_authority,
        "GetCertificateAuthorityCsr": get_certificate_authority_csr,
        "ImportCertificateAuthorityCertificate": import_certificate_authority_certificate,
        "GetCertificateAuthorityCertificate": get_certificate_authority_certificate,
        "UpdateCertificateAuthority": update_certificate_authority,
        "DeleteCertificateAuthority": delete_certificate_authority,
        "IssueCertificate": issue_certificate,
        "GetCertificate": get_certificate,
    }


class Server(DomainDispatcherApplication):
    """moto, but for what is said to AWS Private CA."""

    TARGET = "ACMPrivateCA."

    def __init__(self, create_app):
        super().__init__(create_app)
        self.private_ca = PrivateCa()

    def __call__(self, environ, start_response):
        request = Request(environ)
        if request.path.startswith("/meshca/"):
            answer = self.for_tests(request)
        elif request.headers.get("X-Amz-Target", "").startswith(self.TARGET):
            answer = self.for_clients(request)
        else:
            return super().__call__(environ, start_response)
        return answer(environ, start_response)

    def for_clients(self, request):
        """AWS JSON 1.1 (https://smithy.io/2.0/aws/protocols/aws-json-1_1-protocol.html)."""
        # All of it, or the connection is of no use afterwards.
        body = request.get_data()
        try:
            operation = request.headers["X-Amz-Target"].removeprefix(self.TARGET)
            answer = self.private_ca.call(operation, region_of(request), members(body))
            status = 200
        except Refusal as refusal:
            answer, status = {"__type": refusal.error, "message": refusal.message}, refusal.status
        except Exception:
            traceback.print_exc()
            answer, status = {"__type": "InternalFailure", "message": "This stand-in is broken; see its log"}, 500
        response = Response(json.dumps(answer), status, content_type="application/x-amz-json-1.1")
        response.headers["x-amzn-RequestId"] = str(uuid.uuid4())
        return response

    def for_tests(self, request):
        body = request.get_data()
        status = 200
        try:
            match (request.method, request.path):
                case ("POST", "/meshca/control"):
                    self.private_ca.control(members(body))
                    answer = {}
                case ("GET", "/meshca/calls"):
                    answer = self.private_ca.counts()
                case _:
                    answer, status = {"message": "no such path"}, 404
        except (Refusal, ValueError, TypeError, KeyError, AttributeError) as error:
            answer, status = {"message": f"not understood: {error!r}"}, 400
        return Response(json.dumps(answer), status, content_type="application/json")


def members(body):
    """The members of a JSON object."""
    try:
        parsed = json.loads(body)
    except ValueError as error:
        raise Refusal("SerializationException", f"The body is not JSON: {error}") from error
    if not isinstance(parsed, dict):
        raise Refusal("SerializationException", "The body is not a JSON object")
    return parsed


def region_of(request):
    """The region that a request is signed for: it stands for the endpoint, of which there is one here for all regions."""
    scope = CREDENTIAL.match(request.headers.get("Authorization", ""))
    if not scope:
        raise Refusal("MissingAuthenticationTokenException", "Missing Authentication Token")
    if scope["service"] != "acm-pca":
        raise Refusal("InvalidSignatureException", "Credential should be scoped to correct service: 'acm-pca'.")
    return scope["region"]


if __name__ == "__main__":
    moto.server.DomainDispatcherApplication = Server
    sys.exit(moto.server.main())
