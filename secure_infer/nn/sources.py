"""The data sets that `data.load_dataset` knows: their classes, their terms, and by what they are known again."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

CIFAR_FILE = "cifar-10-binary.tar.gz"


@dataclass(frozen=True)
class Source:
    """Where a data set comes from and how it is known again; `sha256` is that of each array's bytes, or of the file."""

    classes: tuple[str, ...]
    credit: str
    licence: str
    sha256: Mapping[str, str]
    urls: tuple[str, ...] = ()
    md5: Mapping[str, str] | None = None
    levels: int = 255


_DIGITS = tuple("0123456789")
_OBJECTS = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_CIFAR_CREDIT = "Alex Krizhevsky: Learning Multiple Layers of Features from Tiny Images, 2009"

SOURCES: Mapping[str, Source] = {
    "digits": Source(
        _DIGITS,
        "E. Alpaydin, C. Kaynak: Optical Recognition of Handwritten Digits, UCI, 1998; as in scikit-learn",
        "CC BY 4.0",
        {"all": "87ff0c9e40dc7e2c0e34e7257799c2e3f3aec1a016363bb11cad869ec428a826"},
        levels=16,
    ),
    "mnist": Source(
        _DIGITS,
        "Y. LeCun, C. Cortes, C. Burges: The MNIST Database of Handwritten Digits",
        "CC BY-SA 3.0",
        {
            "x_train": "741c988805d008ac6e4c904b69001ba184c24b2c540a4ef403f4c71b676cf757",
            "y_train": "1feba77c54802fa5339a11837ea4b2866434b83314ec45192930f1df69120c13",
            "x_test": "6d87418db22cc8025d05968bec9bd5c3932904b23485740db143a061a2c9d161",
            "y_test": "ddeff807876a9661a1110d45c266c86239a3a1b7d37da0c3716a7a683c852ff5",
        },
        ("https://ossci-datasets.s3.amazonaws.com/mnist/", "https://storage.googleapis.com/cvdf-datasets/mnist/"),
        {
            "x_train": "f68b3c2dcbeaaa9fbdd348bbdeb94873",
            "y_train": "d53e105ee54ea40749a09fcbcd1e9432",
            "x_test": "9fb629c4189551a2d022fa330f9573f3",
            "y_test": "ec29112dd5afa0611ce80d1b7f02629c",
        },
    ),
    "fashion-mnist": Source(
        ("T-shirt", "trouser", "pullover", "dress", "coat", "sandal", "shirt", "sneaker", "bag", "ankle boot"),
        "H. Xiao, K. Rasul, R. Vollgraf: Fashion-MNIST, Zalando Research, 2017",
        "MIT",
        {
            "x_train": "2e487a6c89124f78f2d7521542223cafe96f7123c3ca13d447772ac6ecbb3012",
            "y_train": "657fbd221bfc9f4198cc14b5619cc33ec57c58dd0e47af4d99d6650759e869a7",
            "x_test": "c867c93ff95360594e8ec3287995350b824dd110b11595c0e13d5423f621867a",
            "y_test": "3d0e6c6ea990b53b6f8f500a41cac93881d981b315f84578b7d915342ade01e9",
        },
        (
            "https://raw.githubusercontent.com/zalandoresearch/fashion-mnist/master/data/fashion/",
            "https://fashion-mnist.s3.eu-central-1.amazonaws.com/",
        ),
        {
            "x_train": "8d4fb7e6c68d591d4c3dfef9ec88bf0d",
            "y_train": "25c81989df183df01b3e8a0aad5dffbe",
            "x_test": "bef4ecab320f06d8554ea6380940ec79",
            "y_test": "bb300cfdad3c16e7a12a480ee83cd310",
        },
    ),
    "cifar10": Source(
        _OBJECTS,
        _CIFAR_CREDIT,
        "none stated; cite the report",
        {CIFAR_FILE: "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"},
        ("https://www.cs.toronto.edu/~kriz/",),
        {CIFAR_FILE: "c32a1d4ab5d03f1284b67883e8d87530"},
    ),
    "cifar10-jpeg": Source(
        _OBJECTS,
        _CIFAR_CREDIT + "; recompressed (lossy) as JPEG by Y. Kim",
        "none stated; cite the report",
        {"cifar10-jpeg.npz": "f50988cb117c98f4e377d94e83b1cb9485d87dbb73864da3f52d71d3fcec3a8f"},
    ),
    "orl": Source(
        tuple(f"person {number}" for number in range(1, 41)),
        "AT&T Laboratories Cambridge (Olivetti Research Laboratory): The ORL Database of Faces, 1992-1994",
        "none stated; credit the laboratory",
        {
            "x_train": "d879b07078a476c406d670be35ce68422ab9e7a26963b889912734c0949552c6",
            "y_train": "0e4349e774efb72cc61a353a67673d12a7efd2bb557968af723645da73dea245",
            "x_test": "08cc46907e68402061cf66abc2010e275d83f158fd3351088d158371b09ce7c4",
            "y_test": "6f8a34d8bd055b2946cf280d6b3be6597cc7293a7ada0cae1bd779fbbb1f3d93",
        },
    ),
}
