"""A job's result as the JSON that a webhook posts: no patient, only UIDs."""

from __future__ import annotations

import json

from services.delivery.reported_result import ReportedResult
from services.dicom.result_wording import headline


def webhook_body(result: ReportedResult) -> str:
    """`type`, `timestamp` and `data`, as docs/delivery.md lists them (the layout of Standard Webhooks)."""
    job = result.job
    findings = result.findings.to_dict()
    body = {
        "type": f"result.{result.findings.outcome.value}",
        "timestamp": result.at.isoformat(),
        "data": {
            "job_id": job.id,
            "priority": job.priority,
            "source": job.source,
            "calling_ae_title": job.calling_ae_title,
            "study_instance_uid": job.study_instance_uid,
            "series_instance_uid": job.series_instance_uid,
            "headline": headline(result.findings),
            "embolus_count": None if findings["scan_probability"] is None else len(result.findings.reported),
            "objects": [
                {
                    "sop_class_uid": one.sop_class_uid,
                    "sop_instance_uid": one.sop_instance_uid,
                    "series_instance_uid": one.series_instance_uid,
                }
                for of_kind in result.objects.values()
                for one in of_kind
            ],
            "findings": findings,
        },
    }
    return json.dumps(body, ensure_ascii=False)
