#!/usr/bin/env python3
"""Validates the manifests here against the schemas of Kubernetes, strictly: an unknown key is an error.

usage: check.py FILE...    (wants what requirements.txt names; the package carries the schemas)
"""
import sys

import kubernetes_validate
import yaml


def main():
    faults = documents = 0
    version = kubernetes_validate.latest_version()
    for path in sys.argv[1:]:
        with open(path, encoding="utf-8") as file:
            for document in yaml.safe_load_all(file):
                documents += 1
                try:
                    kubernetes_validate.validate(document, version, strict=True)
                except kubernetes_validate.ValidationError as error:
                    faults += 1
                    print(f"{path}: {document['kind']}: {'.'.join(map(str, error.path))}: {error.message}")
    if not documents:
        print("no document")
        faults = 1
    print(f"kubernetes {version}: {documents} documents, {faults} faults")
    return 1 if faults else 0


if __name__ == "__main__":
    sys.exit(main())
