#!/usr/bin/env python3
"""The manifests of deploy/kubernetes: those of Kubernetes itself against its schemas (kubernetes-validate), the others by
the fields that their controllers need, and all of them against each other: labels, ports, names of metrics.

    python3 -m venv .venv && .venv/bin/pip install -r tests/clients/requirements-kubernetes.txt
    .venv/bin/python tests/clients/kubernetes.py

Ends with 0 where everything fits.
"""

import pathlib
import re
import sys

import kubernetes_validate
import yaml

ROOT = pathlib.Path(__file__).resolve().parents[2]
VERSION = "1.34"
# Kinds that Kubernetes does not bring: the fields that must be there, as paths.
CUSTOM = {
    "InferencePool": ["spec.selector.matchLabels", "spec.targetPorts.0.number", "spec.endpointPickerRef.name",
                      "spec.endpointPickerRef.port.number"],
    "HTTPRoute": ["spec.parentRefs.0.name", "spec.rules.0.backendRefs.0.name"],
    "PodMonitor": ["spec.selector.matchLabels", "spec.podMetricsEndpoints.0.port"],
}


def field(document, path):
    for step in path.split("."):
        document = document[int(step) if step.isdigit() else step]
    return document


def main():
    documents, failed = {}, []
    for file in sorted((ROOT / "deploy/kubernetes").glob("*.yaml")):
        for document in yaml.safe_load_all(file.read_text()):
            name = f"{file.name}: {document['kind']}"
            documents[document["kind"]] = document
            try:
                if document["kind"] in CUSTOM:
                    for path in CUSTOM[document["kind"]]:
                        field(document, path)
                else:
                    kubernetes_validate.validate(document, VERSION, strict=True)
                print(f"ok   {name}")
            except Exception as error:
                failed.append(name)
                print(f"FAIL {name}: {error!r}"[:500])

    def check(what, holds):
        print(f"{'ok  ' if holds else 'FAIL'} {what}")
        if not holds:
            failed.append(what)

    pod = field(documents["Deployment"], "spec.template")
    (container,) = pod["spec"]["containers"]
    labels = pod["metadata"]["labels"].items()
    for kind, path in [("Deployment", "spec.selector.matchLabels"), ("InferencePool", "spec.selector.matchLabels"),
                       ("PodMonitor", "spec.selector.matchLabels"), ("PodDisruptionBudget", "spec.selector.matchLabels")]:
        check(f"{kind} selects the pods", field(documents[kind], path).items() <= labels)
    (port,) = container["ports"]
    number = port["containerPort"]
    check("it listens where the pool and the probes look", f"--listen=0.0.0.0:{number}" in container["args"]
          and field(documents["InferencePool"], "spec.targetPorts.0.number") == number
          and all(container[probe]["grpc"]["port"] == number for probe in ("startupProbe", "readinessProbe")))
    check("metrics are scraped at that port", field(documents["PodMonitor"], "spec.podMetricsEndpoints.0.port") == port["name"])
    check("the autoscaler scales the deployment",
          field(documents["HorizontalPodAutoscaler"], "spec.scaleTargetRef.name") == documents["Deployment"]["metadata"]["name"])
    drain = next(int(found[1]) for arg in container["args"] if (found := re.match(r"--drain-timeout=(\d+)", arg)))
    pause = field(container, "lifecycle.preStop.sleep.seconds")
    check("the grace period is longer than the drain", pod["spec"]["terminationGracePeriodSeconds"] > drain + pause)
    rule = yaml.safe_load(documents["ConfigMap"]["data"]["rule.yaml"])
    (metric,) = field(documents["HorizontalPodAutoscaler"], "spec.metrics")
    series = re.match(r"[\w:]+", rule["seriesQuery"])[0]
    check("the autoscaler's metric is the rule's", rule["name"]["as"] == metric["pods"]["metric"]["name"])
    check("the rule's series is one that the server has", f'"{series}"' in (ROOT / "src/telemetry.rs").read_text())
    sys.exit(f"{len(failed)} do not fit" if failed else None)


if __name__ == "__main__":
    main()
