#!/usr/bin/env python3
"""Replay recorded scenarios of the training operator against a running server. Standard library only.

  replay_scenarios.py --muster target/release/muster | --kubeconfig FILE [--only GLOB]... [--parallel N] [--dir DIR]

The server must run the operator with names and fixed ports, and no garbage collection, scheduler or node. `--muster`
starts one: `muster up --roles apiserver,operator --addressing dns`. Each scenario gets a namespace of its own; several run at once.
The format of the scenarios and the rules of comparison are in training-operator/README.md. mended-scenarios.json names
the steps from which a scenario records a defect that ours does not have; there the comparison ends.
Exit status: 0 all held, 1 something differed, 2 could not start.
"""
import argparse, base64, concurrent.futures, copy, fnmatch, glob, http.client, json, os, re, ssl, sys, tempfile
import threading, time, urllib.parse

HERE = os.path.dirname(os.path.abspath(__file__))
sys.path.insert(0, os.path.join(HERE, ".."))
QUIET = 0.6          # seconds without a change after which a step is over
PATIENCE = 15        # seconds after which a step is over in any case
SECTIONS = {         # section of a snapshot: path of the collection
    "pods": "/api/v1/namespaces/{}/pods",
    "services": "/api/v1/namespaces/{}/services",
    "horizontalpodautoscalers": "/apis/autoscaling/v2/namespaces/{}/horizontalpodautoscalers",
    "podgroups": "/apis/scheduling.x-k8s.io/v1alpha1/namespaces/{}/podgroups",
    "configmaps": "/api/v1/namespaces/{}/configmaps",
    "secrets": "/api/v1/namespaces/{}/secrets",
}
JOBS = {"PyTorchJob": "pytorchjobs", "TFJob": "tfjobs", "MXJob": "mxjobs"}
# Fields that the API server fills in: where ours lacks one, that is not the operator's doing.
FILLED_IN = {
    "clusterIP", "defaultMode", "desiredReplicas", "dnsPolicy", "enableServiceLinks", "failureThreshold",
    "imagePullPolicy", "internalTrafficPolicy", "ipFamilies", "ipFamilyPolicy", "periodSeconds", "protocol", "qosClass",
    "schedulerName", "securityContext", "sessionAffinity", "successThreshold", "targetPort",
    "terminationGracePeriodSeconds", "terminationMessagePath", "terminationMessagePolicy", "timeoutSeconds",
    "loadBalancer", "type",
}
RFC3339 = re.compile(r"^\d{4}-\d\d-\d\dT\d\d:\d\d:\d\d(\.\d+)?Z$")


class Server:
    """A connection per thread to the server of a kubeconfig."""

    def __init__(self, kubeconfig):
        text = open(kubeconfig).read()

        def field(name):
            found = re.search(r'"?%s"?:\s*"?([^"\s,}]+)' % re.escape(name), text)
            return found and found.group(1)

        url = urllib.parse.urlsplit(field("server"))
        self.host, self.port, self.token = url.hostname, url.port, field("token")
        self.context = ssl.create_default_context(cadata=base64.b64decode(field("certificate-authority-data")).decode())
        certificate, key = field("client-certificate-data"), field("client-key-data")
        if certificate and key and not self.token:
            with tempfile.NamedTemporaryFile() as file:
                file.write(base64.b64decode(certificate) + b"\n" + base64.b64decode(key))
                file.flush()
                self.context.load_cert_chain(file.name)
        self.local = threading.local()

    def call(self, method, path, body=None, content_type="application/json"):
        headers = {"Accept": "application/json", "Content-Type": content_type}
        if self.token:
            headers["Authorization"] = "Bearer " + self.token
        data = None if body is None else json.dumps(body)
        for attempt in (1, 2):
            connection = getattr(self.local, "connection", None)
            if connection is None:
                connection = http.client.HTTPSConnection(self.host, self.port, timeout=60, context=self.context)
                self.local.connection = connection
            try:
                connection.request(method, path, data, headers)
                answer = connection.getresponse()
                text = answer.read()
                warnings = [w.split(" ", 2)[2].strip('"') for w in answer.headers.get_all("Warning") or []]
                return answer.status, (json.loads(text) if text else None), warnings
            except (http.client.HTTPException, OSError):
                connection.close()
                self.local.connection = None
                if attempt == 2:
                    raise


class Replay:
    def __init__(self, server, scenario, number, mended, acknowledged):
        self.server, self.scenario = server, scenario
        self.until, self.acknowledged = mended, acknowledged
        self.namespaces = ["replay-%d-%d" % (os.getpid(), number), "replay-%d-%d-second" % (os.getpid(), number)]
        self.target = None
        self.began = []
        self.before = [{}, {}]
        self.counts = [{}, {}]
        self.expected_counts = [{}, {}]
        self.differences = []

    def run(self):
        two = any("namespace" in step["step"] or "snapshot2" in step for step in self.scenario["steps"])
        for namespace in self.namespaces[:2 if two else 1]:
            body = {"apiVersion": "v1", "kind": "Namespace", "metadata": {"name": namespace}}
            status, answer, _ = self.server.call("POST", "/api/v1/namespaces", body)
            if status >= 300:
                self.differences.append("namespace not made: %s" % answer)
                return self.differences
        for number, step in enumerate(self.scenario["steps"], 1):
            if self.until and number >= self.until:
                break
            # Each step begins in a second of its own, so that a time in an object tells its step.
            time.sleep(1.02 - time.time() % 1)
            self.began.append(int(time.time()))
            for difference in self.act(step):
                self.differences.append("step %d: %s" % (number, difference))
            for which, key in enumerate(("snapshot", "snapshot2")):
                if key in step:
                    snapshot, events = self.settled(which)
                    for difference in self.compare(which, step, step[key], snapshot, events):
                        self.differences.append("step %d: %s" % (number, difference))
        return self.differences

    # ---- acting

    def path(self, which, reference, api_version=None):
        kind, name = reference.split("/", 1)
        namespace = self.namespaces[which]
        if kind in JOBS:
            return "/apis/kubeflow.org/v1/namespaces/%s/%s/%s" % (namespace, JOBS[kind], name)
        plural = kind.lower() + "s"
        if api_version and "/" in api_version:
            return "/apis/%s/namespaces/%s/%s/%s" % (api_version, namespace, plural, name)
        return "/api/v1/namespaces/%s/%s/%s" % (namespace, plural, name)

    def act(self, step):
        action = step["step"]
        which = 1 if "namespace" in action else 0
        namespace = self.namespaces[which]
        pods = "/api/v1/namespaces/%s/pods/" % namespace
        merge = "application/merge-patch+json"
        answers = []
        if "apply" in action:
            job = action["apply"]
            if self.target is None:
                self.target = "%s/%s" % (job["kind"], job["metadata"]["name"])
            collection = self.path(which, job["kind"] + "/").rstrip("/")
            answers.append(self.server.call("POST", collection, job))
        elif "patch" in action or "jsonpatch" in action:
            path = self.path(which, action.get("target", self.target), action.get("apiVersion"))
            if "patch" in action:
                answers.append(self.server.call("PATCH", path, action["patch"], merge))
            else:
                answers.append(self.server.call("PATCH", path, action["jsonpatch"], "application/json-patch+json"))
        elif "scale" in action:
            body = {"spec": {"replicas": action["scale"]}}
            answers.append(self.server.call("PATCH", self.path(which, self.target) + "/scale", body, merge))
        elif "getscale" in action:
            answers.append(self.server.call("GET", self.path(which, self.target) + "/scale"))
        elif "pods" in action:
            for name, status in action["pods"].items():
                answers.append(self.server.call("PATCH", pods + name + "/status", {"status": status}, merge))
        elif "bind" in action:
            for name in action["bind"]:
                body = {"apiVersion": "v1", "kind": "Binding", "metadata": {"name": name},
                        "target": {"apiVersion": "v1", "kind": "Node", "name": "node-0"}}
                answers.append(self.server.call("POST", pods + name + "/binding", body))
        elif "reap" in action:
            for name in action["reap"]:
                answers.append(self.server.call("DELETE", pods + name, {"gracePeriodSeconds": 0}))
        elif "delete" in action:
            body = {"propagationPolicy": action.get("propagation", "Background")}
            answers.append(self.server.call("DELETE", self.path(which, action["delete"]), body))
        elif "wait" in action:
            time.sleep(action["wait"])
        else:
            return ["unknown step %s" % action]
        return self.check_answers(step, answers)

    def check_answers(self, step, answers):
        expected = step.get("answer") or {}
        code = expected.get("code", 200)
        if "(answer)" in step.get("unstable", []) or not answers:
            return []
        worst = max(answers, key=lambda answer: answer[0])
        status, body, warnings = worst
        if (status >= 400 or code >= 400) and status != code or status < 400 and "code" in expected and status != code:
            return ["answered %d instead of %d: %s" % (status, code, (body or {}).get("message"))]
        differences = []
        if code >= 400 and "pods" not in step["step"]:
            for key in ("message", "reason", "details"):
                ours, theirs = (body or {}).get(key), expected["status"].get(key)
                if ours != theirs:
                    differences.append("answer's %s is %s instead of %s" % (key, json.dumps(ours), json.dumps(theirs)))
        if code < 400 and warnings != expected.get("warnings", []):
            differences.append("warnings are %s instead of %s" % (warnings, expected.get("warnings", [])))
        if "scale" in expected:
            for key, value in expected["scale"].items():
                if self.normalise(body.get(key)) != value:
                    differences.append("scale's %s is %s instead of %s" % (key, body.get(key), value))
        return differences

    # ---- looking

    def look(self, which):
        namespace = self.namespaces[which]
        snapshot, versions = {"jobs": {}}, []

        def items(path):
            status, body, _ = self.server.call("GET", path)
            found = body.get("items") or [] if status == 200 else []
            versions.extend((item["metadata"]["uid"], item["metadata"]["resourceVersion"]) for item in found)
            return found

        for kind, plural in JOBS.items():
            for item in items("/apis/kubeflow.org/v1/namespaces/%s/%s" % (namespace, plural)):
                snapshot["jobs"]["%s/%s" % (kind, item["metadata"]["name"])] = item
        for section, path in SECTIONS.items():
            snapshot[section] = {item["metadata"]["name"]: item for item in items(path.format(namespace))}
        events = {}
        for item in items("/api/v1/namespaces/%s/events" % namespace):
            about = item["involvedObject"]
            key = ("%s/%s" % (about["kind"], about["name"]), item["type"], item["reason"], item["message"])
            events[key] = events.get(key, 0) + item.get("count", 1)
        return snapshot, events, versions

    def settled(self, which):
        deadline = time.time() + PATIENCE
        snapshot, events, versions = self.look(which)
        since = time.time()
        while time.time() < deadline and time.time() - since < QUIET:
            time.sleep(0.15)
            snapshot, events, now = self.look(which)
            if now != versions:
                versions, since = now, time.time()
        return snapshot, events

    def normalise_object(self, section, item):
        """As `normalise`, without what the recording API server had switched off: the admission plugins
        ServiceAccount, DefaultTolerationSeconds and Priority."""
        item = self.normalise(item)
        if section == "services":
            item.get("spec", {}).pop("clusterIPs", None)
        if section == "pods":
            spec = item["spec"]
            for name, default in (("priority", 0), ("preemptionPolicy", "PreemptLowerPriority"),
                                  ("serviceAccount", "default"), ("serviceAccountName", "default")):
                if spec.get(name) == default:
                    del spec[name]
            own = [t for t in spec.get("tolerations", []) if t.get("key") not in (
                "node.kubernetes.io/not-ready", "node.kubernetes.io/unreachable")]
            keep(spec, "tolerations", own)
            keep(spec, "volumes", [v for v in spec.get("volumes", []) if not v["name"].startswith("kube-api-access-")])
            for container in spec.get("containers", []) + spec.get("initContainers", []):
                keep(container, "volumeMounts", [mount for mount in container.get("volumeMounts", [])
                                                 if not mount["name"].startswith("kube-api-access-")])
        return item

    def normalise(self, value, key=None):
        if isinstance(value, dict):
            dropped = {"uid", "resourceVersion", "generation", "managedFields", "creationTimestamp", "namespace",
                       "selfLink"} if key == "metadata" else set()
            out = {}
            for name, item in value.items():
                if item is None or name in dropped:
                    continue
                out[name] = "<uid>" if name == "uid" else self.normalise(item, name)
            return out
        if isinstance(value, list):
            return [self.normalise(item) for item in value]
        if isinstance(value, str):
            if RFC3339.match(value):
                seconds = int(time.mktime(time.strptime(value[:19], "%Y-%m-%dT%H:%M:%S")) - time.timezone)
                return "<time:%d>" % sum(1 for began in self.began if began <= seconds)
            return value.replace(self.namespaces[1], "<ns2>").replace(self.namespaces[0], "<ns>")
        return value

    # ---- comparing

    def compare(self, which, step, expected, actual, events):
        resolved = {}
        for section, value in expected.items():
            if section == "events":
                continue
            before = self.before[which].get(section, {})
            if value == "=":
                resolved[section] = before
            else:
                resolved[section] = {name: before.get(name) if item == "=" else item for name, item in value.items()}
        self.before[which] = copy.deepcopy(resolved)
        actual = {section: {name: self.normalise_object(section, item) for name, item in items.items()}
                  for section, items in actual.items()}
        for pointer in step.get("unstable", []):
            remove(resolved, pointer)
            remove(actual, pointer)
        only = self.step_object(step)
        found = []
        for section in ["jobs"] + list(SECTIONS):
            theirs, ours = resolved.get(section, {}), actual.get(section, {})
            for name in sorted(set(theirs) | set(ours)):
                if only and only != name:
                    continue
                path = "%s/%s" % (section, name)
                if name not in ours:
                    found.append(path + " is missing")
                elif name not in theirs:
                    found.append(path + " should not be there")
                else:
                    item = ours[name]
                    if only and name in self.acknowledged and not theirs[name].get("status"):
                        if not item.get("status", {}).get("conditions"):
                            found.append(path + " is not acknowledged")
                        item = {key: value for key, value in item.items() if key != "status"}
                    differences(path, theirs[name], item, found)
        new = {key for key, count in events.items() if count > self.counts[which].get(key, 0)}
        self.counts[which] = events
        for event in [] if only else expected.get("events") or []:
            key = (event["object"], event["type"], event["reason"], event["message"])
            earlier = self.expected_counts[which].get(key, 0)
            self.expected_counts[which][key] = event["count"]
            if min(event.get("counts") or [event["count"]]) <= earlier:
                continue  # Some passes did not raise this count.
            if not any(self.normalise(mine[3]) == key[3] and mine[:3] == key[:3] for mine in new):
                found.append("event is missing: %s" % (key,))
        return found

    def step_object(self, step):
        """In scenarios of refused objects only the object of the step counts."""
        if not self.scenario["name"].endswith(("-refused", "-invalid")):
            return None
        action = step["step"]
        if "target" in action:
            return action["target"]
        return "%s/%s" % (action["apply"]["kind"], action["apply"]["metadata"]["name"])


def keep(parent, key, value):
    if value:
        parent[key] = value
    else:
        parent.pop(key, None)


def remove(value, pointer):
    keys = [key.replace("~1", "/").replace("~0", "~") for key in pointer.strip("/").split("/")]
    for key in keys[:-1]:
        if isinstance(value, list):
            value = value[int(key)] if key.isdigit() and int(key) < len(value) else {}
        else:
            value = value.get(key, {})
    if isinstance(value, dict):
        value.pop(keys[-1], None)


def differences(path, expected, actual, found):
    if isinstance(expected, dict) and isinstance(actual, dict):
        for key in sorted(set(expected) | set(actual)):
            below = "%s/%s" % (path, key)
            if path.count("/") == (2 if path.startswith("jobs/") else 1) and key in ("apiVersion", "kind"):
                continue
            if key not in actual:
                if path.startswith("jobs/") or key not in FILLED_IN:
                    found.append("%s is missing: %s" % (below, json.dumps(expected[key])))
            elif key not in expected:
                found.append("%s should not be there: %s" % (below, json.dumps(actual[key])))
            else:
                differences(below, expected[key], actual[key], found)
    elif isinstance(expected, list) and isinstance(actual, list) and len(expected) == len(actual):
        for index, (theirs, ours) in enumerate(zip(expected, actual)):
            differences("%s/%d" % (path, index), theirs, ours, found)
    elif expected != actual:
        found.append("%s is %s instead of %s" % (path, json.dumps(actual), json.dumps(expected)))


def main():
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    server = parser.add_mutually_exclusive_group(required=True)
    server.add_argument("--kubeconfig", help="of a running server")
    server.add_argument("--muster", help="the binary to start a server with")
    parser.add_argument("--dir", default=os.path.join(HERE, "training-operator"))
    parser.add_argument("--only", action="append", help="names of scenarios, with wildcards")
    parser.add_argument("--parallel", type=int, default=16)
    parser.add_argument("--verbose", action="store_true", help="print every difference, not the first few")
    arguments = parser.parse_args()
    os.environ["TZ"] = "UTC"
    time.tzset()
    try:
        if arguments.kubeconfig:
            return replay(arguments, arguments.kubeconfig)
        from server import Server as Muster
        with Muster(arguments.muster, ["--roles", "apiserver,operator", "--addressing", "dns"]) as muster:
            return replay(arguments, muster.kubeconfig)
    except (OSError, RuntimeError, ValueError, TypeError) as error:
        print("replay_scenarios: %s" % error, file=sys.stderr)
        return 2


def has_deadline(scenario):
    return "activeDeadlineSeconds" in json.dumps(scenario["steps"][0]["step"])


def replay(arguments, kubeconfig):
    server = Server(kubeconfig)
    with open(os.path.join(HERE, "mended-scenarios.json")) as file:
        mended = json.load(file)
    scenarios = []
    for path in sorted(glob.glob(os.path.join(arguments.dir, "*.json"))):
        with open(path) as file:
            scenarios.append(json.load(file))
    server.call("GET", "/version")
    if arguments.only:
        scenarios = [s for s in scenarios if any(fnmatch.fnmatch(s["name"], name) for name in arguments.only)]
    held, stopped, failed = 0, 0, 0
    with concurrent.futures.ThreadPoolExecutor(arguments.parallel) as pool:
        def one(numbered):
            number, scenario = numbered
            until = mended["scenarios"].get(scenario["name"], {}).get("from")
            try:
                return scenario["name"], until, Replay(server, scenario, number, until, mended["acknowledged"]).run()
            except Exception as error:  # A broken scenario must not hide the others.
                return scenario["name"], until, ["%s: %s" % (type(error).__name__, error)]

        # The crowd comes first: scenarios whose steps race against a deadline want a server with time for them.
        numbered = list(enumerate(scenarios))
        answers = list(pool.map(one, [n for n in numbered if not has_deadline(n[1])]))
    with concurrent.futures.ThreadPoolExecutor(min(arguments.parallel, 4)) as pool:
        answers += pool.map(one, [n for n in numbered if has_deadline(n[1])])
    for name, until, found in answers:
        if found:
            failed += 1
            shown = found if arguments.verbose else found[:6]
            more = [] if len(found) == len(shown) else ["... and %d more" % (len(found) - len(shown))]
            print("%s\n    %s" % (name, "\n    ".join(shown + more)))
        elif until:
            stopped += 1
        else:
            held += 1
    print("scenarios: %d held, %d held up to a mended defect, %d differ, of %d"
          % (held, stopped, failed, len(scenarios)))
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
