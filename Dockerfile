# The demo on digits, on a CPU:  docker build -t nsaug . && docker run --rm -v "$PWD/outputs:/nsaug/outputs" nsaug
# Your own run on all GPUs:      docker run --rm --gpus all --ipc host -v /my:/my -v "$PWD/outputs:/nsaug/outputs" nsaug \
#                                    python train.py experiment=finetune data.root=/my/images
FROM python:3.11-slim-bookworm

# OpenCV, for three of the corruptions, needs these libraries.
RUN apt-get update \
    && apt-get install --yes --no-install-recommends libgl1 libglib2.0-0 \
    && rm -rf /var/lib/apt/lists/*

WORKDIR /nsaug

# First what defines the dependencies: their layer of several GB stays in the cache when other files change.
COPY pyproject.toml setup.py constraints.txt README.md LICENSE ./
COPY nsaug/__init__.py nsaug/
COPY conf conf
RUN pip install --no-cache-dir --constraint constraints.txt --editable '.[attacks,corruptions]'

COPY . .
CMD ["sh", "scripts/demo.sh"]
