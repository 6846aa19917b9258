"Packaging only: every value lives in settings.ini."
from configparser import ConfigParser

from setuptools import find_packages, setup

config = ConfigParser(delimiters=['='])
config.read('settings.ini', encoding='utf-8')
cfg = config['DEFAULT']
extra = {key.removesuffix('_requirements'): cfg[key].split() for key in cfg
         if key.endswith('_requirements') and key != 'pip_requirements'}

setup(
    name=cfg['lib_name'], version=cfg['version'], description=cfg['description'],
    keywords=cfg['keywords'], url=cfg['git_url'],
    author=cfg['author'], author_email=cfg['author_email'],
    license='Apache-2.0', python_requires='>=' + cfg['min_python'],
    long_description=open('README.md', encoding='utf-8').read(),
    long_description_content_type='text/markdown',
    packages=find_packages(include=[cfg['lib_path'] + '*']),
    package_data={'': ['*.json']},
    install_requires=f"{cfg['requirements']} {cfg['pip_requirements']}".split(),
    extras_require=extra,
    entry_points={
        'console_scripts': cfg['console_scripts'].split(),
        'nbdev': [f"{cfg['lib_path']}={cfg['lib_path']}._modidx:d"]}, zip_safe=False)
