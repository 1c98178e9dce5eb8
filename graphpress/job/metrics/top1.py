"""Top-1 accuracy in percent: what labels give where no metric is named."""

from graphpress.job.metric import Top1

METRIC = Top1
